//! An IOMMU between the guest and the back-end, which the owner plays.
//!
//! | who | what | how |
//! |---|---|---|
//! | back-end | needs a page | [`Event::IotlbMiss`], answered by [`Command::AnswerMiss`] |
//! | owner | has mapped something | [`Command::Translate`], asked or not |
//! | owner | has unmapped something | [`Command::Invalidate`]; it is in use until [`Event::IotlbInvalidated`] |
//! | back-end | may not do what it has to | [`Event::IotlbAccessFail`], nothing follows |
//!
//! It is in force while the guest has accepted VIRTIO_F_ACCESS_PLATFORM. Ring
//! addresses are I/O virtual ones then, see [`VringStart`](super::VringStart).
// spec: vhost-user, "IOMMU support"

use super::Frontend;
use super::channel::Due;
use super::error::ApiMisuse;
use super::io::{Command, Event, Output};
use super::steps::{Purpose, Step};
use crate::Handle;
use crate::wire::features::virtio;
use crate::wire::{BackendRequest, FrontendRequest, Iotlb};

/// Types of an IOTLB message.
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const ACCESS_FAIL: u8 = 4;

/// Where I/O virtual addresses lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// First I/O virtual address.
    pub iova: u64,
    /// Bytes, not 0.
    pub size: u64,
    /// User address of the first byte.
    pub user_addr: u64,
    /// 1 read, 2 write, 3 both.
    pub access: u8,
}

impl Frontend {
    /// True if the guest's addresses are not the back-end's.
    pub(super) fn has_iommu(&self) -> bool {
        self.device.features.unwrap_or(0) & virtio::ACCESS_PLATFORM != 0
    }

    fn expect_iommu(&self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.phase.is_connected())?;
        if !self.has_iommu() {
            let feature = "ACCESS_PLATFORM";
            return Err(ApiMisuse::NotNegotiated { what, feature });
        }
        Ok(())
    }

    /// A message of the back-end. Questions wait for the owner; what is no
    /// question is answered at once.
    pub(super) fn take_iotlb(&mut self, message: Iotlb, need_reply: bool) {
        let Iotlb { iova, perm, kind, .. } = message;
        let code = BackendRequest::<Handle>::IotlbMsg(message).code();
        let (event, due) = match kind {
            MISS if self.has_iommu() => {
                (Some(Event::IotlbMiss { iova, access: perm }), Due::Owner { code, need_reply })
            }
            ACCESS_FAIL if self.has_iommu() => {
                let event = Event::IotlbAccessFail { iova, access: perm };
                (Some(event), Due::Known { code, need_reply, status: 0 })
            }
            _ => (None, Due::Known { code, need_reply, status: 1 }),
        };
        self.owe(due);
        self.outputs.extend(event.map(Output::Event));
    }

    pub(super) fn iommu_command(
        &mut self,
        what: &'static str,
        command: Command,
    ) -> Result<(), ApiMisuse> {
        self.expect_iommu(what)?;
        match command {
            Command::AnswerMiss(answer) => {
                let waits = |due: &&mut Due| matches!(due, Due::Owner { .. });
                let due = self.channel.as_mut().and_then(|c| c.due.iter_mut().find(waits));
                let Some(due) = due else { return Err(ApiMisuse::NoMiss) };
                let &mut Due::Owner { code, need_reply } = due else { return Ok(()) };
                match answer {
                    None => {
                        *due = Due::Known { code, need_reply, status: 1 };
                        self.answer_dues();
                    }
                    // The update goes first, and the answer when it is in force:
                    // the two are on different sockets.
                    Some(translation) => {
                        *due = Due::Told { code, need_reply };
                        self.tell_translation(translation, true);
                    }
                }
            }
            Command::Translate(translation) => self.tell_translation(translation, false),
            Command::Invalidate { iova, size } => {
                let message = Iotlb { iova, size, user_addr: 0, perm: 0, kind: INVALIDATE };
                let purpose = Purpose::Invalidation { iova, size };
                self.steps.push_back(ask(message, purpose));
            }
            _ => {}
        }
        Ok(())
    }

    fn tell_translation(&mut self, translation: Translation, asked: bool) {
        let Translation { iova, size, user_addr, access } = translation;
        let message = Iotlb { iova, size, user_addr, perm: access & 3, kind: UPDATE };
        self.steps.push_back(ask(message, Purpose::Translation { asked }));
    }

    /// The back-end has a translation now, or does not want it.
    pub(super) fn translated(&mut self, message: &'static str, asked: bool, status: u64) {
        if status != 0 {
            self.outputs.push_back(Output::Event(Event::Refused { message, status }));
        }
        if !asked {
            return;
        }
        let told = |due: &&mut Due| matches!(due, Due::Told { .. });
        if let Some(due) = self.channel.as_mut().and_then(|c| c.due.iter_mut().find(told))
            && let &mut Due::Told { code, need_reply } = due
        {
            *due = Due::Known { code, need_reply, status: u64::from(status != 0) };
        }
        self.answer_dues();
    }
}

fn ask(message: Iotlb, purpose: Purpose) -> Step {
    // The message has an answer of its own; peers set NEED_REPLY all the same.
    Step::Ask { request: FrontendRequest::IotlbMsg(message), need_reply: true, purpose }
}
