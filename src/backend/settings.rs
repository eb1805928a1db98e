//! The settings of one vring.

use super::answer::Reply;
use super::vring::check_alignment;
use super::{Backend, FrontendFault, Output};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::time::Instant;
use crate::vring::RingFormat;
use crate::wire::{VringAddr, VringFile, VringState};
use vm_memory::GuestMemory;

impl<M: GuestMemory> Backend<M> {
    pub(super) fn vring_index(&self, index: u32, reply: Reply) -> Result<u16, FrontendFault> {
        let count = self.config.num_queues;
        match u16::try_from(index) {
            Ok(vring) if vring < count => Ok(vring),
            _ => Err(FrontendFault::VringIndex { message: reply.message, got: index, count }),
        }
    }

    fn stopped(&self, index: u32, reply: Reply) -> Result<u16, FrontendFault> {
        let vring = self.vring_index(index, reply)?;
        if self.vrings[usize::from(vring)].run.is_some() {
            return Err(FrontendFault::VringRunning { message: reply.message, vring });
        }
        Ok(vring)
    }

    pub(super) fn set_vring_num(
        &mut self,
        state: VringState,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.stopped(state.index, reply)?;
        let max = self.config.queue_size_max;
        let format = self.session.ring_format();
        match u16::try_from(state.num) {
            Ok(size) if format.has_size(size) && size <= max => {
                self.vrings[usize::from(vring)].size = size;
                Ok(())
            }
            _ => Err(FrontendFault::VringSize { vring, format, got: state.num, max }),
        }
    }

    pub(super) fn set_vring_addr(
        &mut self,
        addr: VringAddr,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.vring_index(addr.index, reply)?;
        check_alignment(vring, self.session.ring_format(), &addr)?;
        let v = &mut self.vrings[usize::from(vring)];
        // While a ring runs only the log flag may differ.
        if let (Some(_), Some(old)) = (&v.run, &v.addr)
            && (old.desc, old.used, old.avail) != (addr.desc, addr.used, addr.avail)
        {
            return Err(FrontendFault::VringRunning { message: reply.message, vring });
        }
        if !bugs::on_when(Bug::StaleVringAddr, || v.addr.is_some_and(|old| old != addr)) {
            v.addr = Some(addr);
        }
        Ok(())
    }

    pub(super) fn set_vring_base(
        &mut self,
        state: VringState,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.stopped(state.index, reply)?;
        // Of a packed ring it is looked at when its size is certain.
        // spec: vhost-user, "Vring descriptor indices for split virtqueues"
        let (format, got) = (self.session.ring_format(), state.num);
        if format == RingFormat::Split && !format.has_base(got, 0) {
            return Err(FrontendFault::VringBase { vring, got });
        }
        self.vrings[usize::from(vring)].base = Some(got);
        Ok(())
    }

    pub(super) fn set_vring_kick(
        &mut self,
        now: Instant,
        file: VringFile<Handle>,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.vring_index(u32::from(file.index), reply)?;
        let running = || self.vrings[usize::from(vring)].run.is_some();
        if !bugs::on_when(Bug::NoLookAfterSwap, running) {
            self.kicked(now, vring)?;
        }
        let v = &mut self.vrings[usize::from(vring)];
        let old = core::mem::replace(&mut v.kick, file.handle);
        v.polled = file.handle.is_none();
        let watched = bugs::on_when(Bug::OldKickWatched, || old.is_some());
        if (old.is_some() || file.handle.is_some()) && !watched {
            self.out.push_back(Output::WatchKick { vring, handle: file.handle });
        }
        self.release(old);
        Ok(())
    }

    /// Start a vring that is stopped, and have one that runs looked at. One that
    /// cannot start stays as it was.
    // spec: vhost-user, "Ring states"
    pub(super) fn kicked(&mut self, now: Instant, vring: u16) -> Result<(), FrontendFault> {
        let v = &mut self.vrings[usize::from(vring)];
        let was_started = core::mem::replace(&mut v.started, true);
        self.start_vring(now, vring).inspect_err(|_| {
            self.vrings[usize::from(vring)].started = was_started;
        })
    }

    pub(super) fn set_vring_call(
        &mut self,
        file: VringFile<Handle>,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.vring_index(u32::from(file.index), reply)?;
        let v = &mut self.vrings[usize::from(vring)];
        let old = core::mem::replace(&mut v.call, file.handle);
        v.call_polled = file.handle.is_none();
        // The descriptor, or the guest's own look, is for this as well.
        v.call_due = false;
        // What was published just before the swap may have called the old one,
        // which nobody listens to any more.
        if let (Some(handle), Some(_)) = (v.call, &v.run)
            && !bugs::on(Bug::NoCallAfterSwap)
        {
            self.out.push_back(Output::Call { vring, handle });
        }
        self.release(old);
        Ok(())
    }

    pub(super) fn set_vring_err(
        &mut self,
        file: VringFile<Handle>,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.vring_index(u32::from(file.index), reply)?;
        let v = &mut self.vrings[usize::from(vring)];
        let old = core::mem::replace(&mut v.err, file.handle);
        v.err_polled = file.handle.is_none();
        // The same as for a call: the news may have gone to the old one.
        if v.err.is_some() && v.run.as_ref().is_some_and(|run| run.broken) {
            self.err(vring);
        }
        self.release(old);
        Ok(())
    }

    pub(super) fn set_vring_enable(
        &mut self,
        now: Instant,
        state: VringState,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let vring = self.vring_index(state.index, reply)?;
        let v = &mut self.vrings[usize::from(vring)];
        let was_enabled = core::mem::replace(&mut v.enabled, state.num == 1);
        let blind = bugs::on_when(Bug::NoLookAfterEnable, || v.run.is_some());
        if !blind && let Err(fault) = self.start_vring(now, vring) {
            self.vrings[usize::from(vring)].enabled = was_enabled;
            return Err(fault);
        }
        if state.num == 0 && bugs::on_when(Bug::DisableResets, || was_enabled) {
            self.stop_vring(vring);
            self.vrings[usize::from(vring)].base = None;
        }
        Ok(())
    }
}
