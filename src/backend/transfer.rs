//! The device's state on its way out or in, over a pipe of the front-end's.
//!
//! | from | event | to |
//! |---|---|---|
//! | none, ended | SET_DEVICE_STATE_FD, all vrings stopped | saving or loading |
//! | saving, loading | the driver has written or read all | ended, well or not |
//! | saving, loading | RESET_DEVICE, connection gone | none |
//! | ended | CHECK_DEVICE_STATE: answered | none |
//! | saving, loading | CHECK_DEVICE_STATE | the answer waits for the end |
//!
//! No vring starts while a transfer is under way.
// spec: vhost-user, "Migrating back-end state"

use super::answer::Reply;
use super::setup::Pending;
use super::{ApiMisuse, Backend, Event, FrontendFault, MapFailed, Output};
use crate::Handle;
use crate::blk::{STATE_MAX, SavedState, SavedStateFault};
use crate::wire::{FrontendReplyBody, TransferState};
use bytes::Bytes;
use vm_memory::GuestMemory;

/// Where a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Transfer {
    #[default]
    None,
    Saving(Handle),
    Loading(Handle),
    /// Over and not asked for yet; `true` if all went well.
    Ended(bool),
}

/// Directions of SET_DEVICE_STATE_FD.
const SAVE: u32 = 0;

impl<M: GuestMemory> Backend<M> {
    /// The front-end's end of the channel is used, so no descriptor goes back.
    pub(super) fn set_device_state_fd(
        &mut self,
        state: TransferState,
        handle: Handle,
        reply: Reply,
    ) -> Result<FrontendReplyBody<Handle>, FrontendFault> {
        let message = reply.message();
        if let Some(vring) = self.running_vring() {
            return Err(FrontendFault::VringRunning { message, vring });
        }
        if self.is_transferring() {
            return Err(FrontendFault::Transferring { message });
        }
        if state.direction == SAVE {
            let bytes = Bytes::copy_from_slice(&self.state().encode());
            self.out.push_back(Output::SaveState { handle, bytes });
            self.transfer = Transfer::Saving(handle);
        } else {
            self.out.push_back(Output::LoadState { handle, most: STATE_MAX });
            self.transfer = Transfer::Loading(handle);
        }
        Ok(FrontendReplyBody::DeviceState(0, None))
    }

    fn state(&self) -> SavedState {
        SavedState { capacity: self.config.capacity, writeback: self.cache.is_on() }
    }

    pub(super) fn is_transferring(&self) -> bool {
        matches!(self.transfer, Transfer::Saving(_) | Transfer::Loading(_))
    }

    pub(super) fn state_saved(&mut self, result: Result<(), MapFailed>) -> Result<(), ApiMisuse> {
        let Transfer::Saving(handle) = self.transfer else {
            return Err(ApiMisuse::NotAskedFor("a device state that was saved"));
        };
        let failed = result.err().map(|MapFailed(why)| why);
        if failed.is_none() {
            self.event(Event::StateSaved);
        }
        self.transferred(handle, failed);
        Ok(())
    }

    pub(super) fn state_loaded(
        &mut self,
        result: Result<Bytes, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let Transfer::Loading(handle) = self.transfer else {
            return Err(ApiMisuse::NotAskedFor("a device state that was loaded"));
        };
        let failed = match result {
            Err(MapFailed(why)) => Some(why),
            Ok(bytes) => self.take_state(&bytes).err().map(|fault| fault.to_string()),
        };
        self.transferred(handle, failed);
        Ok(())
    }

    fn take_state(&mut self, bytes: &[u8]) -> Result<(), SavedStateFault> {
        let SavedState { capacity, writeback } = SavedState::decode(bytes)?;
        let expected = self.config.capacity;
        if capacity != expected {
            return Err(SavedStateFault::Capacity { expected, got: capacity });
        }
        self.cache.take_over(writeback);
        self.event(Event::StateLoaded { writeback });
        Ok(())
    }

    fn transferred(&mut self, handle: Handle, failed: Option<String>) {
        self.transfer = Transfer::Ended(failed.is_none());
        // The reader sees the end when the descriptor is closed.
        self.release([handle]);
        if let Some(why) = failed {
            self.event(Event::StateFailed(why));
        }
        match self.pending.take() {
            Pending::CheckState(reply) => self.answer_check(reply),
            other => self.pending = other,
        }
    }

    pub(super) fn check_device_state(&mut self, reply: Reply) {
        if self.is_transferring() {
            self.pending = Pending::CheckState(reply);
        } else {
            self.answer_check(reply);
        }
    }

    fn answer_check(&mut self, reply: Reply) {
        let well = core::mem::take(&mut self.transfer) == Transfer::Ended(true);
        self.answer(reply, FrontendReplyBody::U64(u64::from(!well)));
    }

    /// Nobody wants the state any more. Releasing its descriptor tells the driver.
    pub(super) fn end_transfer(&mut self) {
        if let Transfer::Saving(handle) | Transfer::Loading(handle) =
            core::mem::take(&mut self.transfer)
        {
            self.release([handle]);
        }
    }
}
