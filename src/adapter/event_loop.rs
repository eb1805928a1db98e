//! The loop: one readiness, one input, all outputs, sleep until due.

mod channel;
mod client;
mod state;
mod store;

use super::clock::Clock;
use super::disk::Disk;
use super::handles::Handles;
use super::listener::Listener;
use super::lock::StoreLock;
use super::memory::{self, GuestMem, Memory};
use super::poller::{Poller, Source};
use super::signals::Signals;
use super::size::SizeWatch;
use super::socket::Socket;
use super::spin::Spin;
use super::userfault::Postcopy;
use super::{events, sigbus};
use crate::Handle;
use crate::backend::{
    ApiMisuse, Backend, CHAINS_PER_CALL, Command, Event, Input, MapFailed, MissingMemory, Output,
};
use crate::blk::Completion;
use crate::time::Instant;
use bytes::Bytes;
use state::StateTransfer;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// Everything a daemon is made of.
pub struct EventLoop {
    /// First, because fields are dropped in order: the disk waits for what it
    /// is working on, and the memory has to be there until then.
    disk: Disk,
    memory: Memory,
    /// After the memory, which leaves it when it is unmapped.
    faults: Postcopy,
    /// Whose the image is.
    store: StoreLock,
    /// How large it is.
    size: SizeWatch,
    backend: Backend<GuestMem>,
    clock: Clock,
    poller: Poller,
    signals: Signals,
    /// `None`: the only client there will ever be was inherited.
    listener: Option<Listener>,
    /// A client may be waiting.
    may_accept: bool,
    socket: Option<Socket>,
    /// Where the back-end asks the front-end.
    channel: Option<Socket>,
    /// The device's state on its way.
    state: Option<StateTransfer>,
    handles: Handles,
    /// What is watched for kicks, by vring.
    kicks: Vec<Option<Handle>>,
    completions: Vec<Completion>,
    /// Answers to outputs, given when all outputs are taken.
    answers: VecDeque<Answer>,
    spin: Spin,
    stopping: bool,
}

enum Answer {
    Mapped(Result<GuestMem, MapFailed>),
    MappedMissing(Result<MissingMemory<GuestMem>, MapFailed>),
    FaultsOpened(Result<Handle, MapFailed>),
    InflightMapped(Result<GuestMem, MapFailed>),
    LogMapped(Result<GuestMem, MapFailed>),
    InflightAllocated(Result<Handle, MapFailed>),
    StateSaved(Result<(), MapFailed>),
    StateLoaded(Result<Bytes, MapFailed>),
    /// Not to a wish, but to be told after all of them.
    ChannelClosed(Option<String>),
}

impl EventLoop {
    /// Put the parts together.
    pub fn new(
        backend: Backend<GuestMem>,
        disk: Disk,
        store: StoreLock,
        size: SizeWatch,
        signals: Signals,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&signals, Source::Signal)?;
        for fd in disk.fds() {
            poller.add(fd, Source::Disk)?;
        }
        Ok(Self {
            backend,
            clock: Clock::start(),
            poller,
            signals,
            listener: None,
            may_accept: false,
            socket: None,
            channel: None,
            state: None,
            handles: Handles::default(),
            kicks: Vec::new(),
            memory: Memory::default(),
            faults: Postcopy::default(),
            store,
            size,
            disk,
            completions: Vec::with_capacity(usize::from(CHAINS_PER_CALL)),
            answers: VecDeque::new(),
            spin: Spin::default(),
            stopping: false,
        })
    }

    /// Serve clients one after the other, until a signal.
    pub fn run_listener(mut self, listener: Listener) -> io::Result<()> {
        self.poller.add(&listener, Source::Listener)?;
        self.listener = Some(listener);
        self.run()
    }

    /// Serve one client, until it leaves or a signal comes.
    pub fn run_client(mut self, client: OwnedFd) -> io::Result<()> {
        self.connect(self.clock.now(), client)?;
        self.run()
    }

    fn run(mut self) -> io::Result<()> {
        while !self.is_over() {
            let until = self.next_wakeup();
            let now = self.wait(until)?;
            while let Some(source) = self.poller.next() {
                self.ready(now, source);
            }
            if self.may_accept {
                self.accept(now)?;
            }
            self.receive(now);
            self.receive_channel(now);
            if self.backend.poll_timeout().is_some_and(|(due, _)| due <= now) {
                self.tell(now, Input::Timeout);
            }
            if self.state.as_ref().is_some_and(|state| state.deadline <= now) {
                self.state_overdue(now);
            }
            if self.size.deadline().is_some_and(|due| due <= now) {
                self.measure(now);
            }
            self.own_store(now);
            self.pump(now)?;
            if sigbus::take_hit() {
                say!("memory that the front-end shares is gone, closing the connection");
                self.disconnect(now);
            }
            if self.socket.as_ref().is_some_and(|s| s.broken) {
                self.disconnect(now);
            }
        }
        Ok(())
    }

    /// Wait for something to become ready, or for `until`; the time after it.
    fn wait(&mut self, until: Option<Instant>) -> io::Result<Instant> {
        let start = self.clock.now();
        if until.is_some_and(|until| until <= start) {
            self.poller.wait(start, until)?;
            return Ok(start);
        }
        let spin_end = start + self.spin.limit();
        let mut now = start;
        while now < spin_end && until.is_none_or(|until| now < until) {
            if self.poller.wait(now, Some(now))? {
                return Ok(self.clock.now());
            }
            now = self.clock.now();
        }
        self.poller.wait(now, until)?;
        let now = self.clock.now();
        self.spin.learn(now.saturating_since(start));
        Ok(now)
    }

    fn is_over(&self) -> bool {
        self.socket.is_none() && (self.stopping || self.listener.is_none())
    }

    /// When to go on even if nothing becomes ready.
    fn next_wakeup(&self) -> Option<Instant> {
        let readable = self.socket.as_ref().is_some_and(|s| s.readable);
        let can_accept = self.may_accept && self.is_vacant();
        if can_accept || readable && self.backend.wanted() > 0 || self.channel_is_readable() {
            return Some(Instant::ZERO);
        }
        let timer = self.backend.poll_timeout().map(|(due, _)| due);
        let state = self.state.as_ref().map(|state| state.deadline);
        let others = [self.disk.deadline(), self.store.deadline(), self.size.deadline(), state];
        timer.into_iter().chain(others.into_iter().flatten()).min()
    }

    fn ready(&mut self, now: Instant, source: Source) {
        match source {
            // An event of a descriptor that was dropped meanwhile is no kick.
            Source::Kick(vring) => {
                if self.kick_handle(vring).is_some() {
                    self.tell(now, Input::Kick { vring });
                }
            }
            Source::Disk => {}
            Source::Control => {
                if let Some(socket) = &mut self.socket {
                    socket.readable = true;
                    if let Err(error) = socket.flush() {
                        say!("lost the front-end: {error}");
                        self.disconnect(now);
                    }
                }
            }
            Source::Channel => self.channel_ready(now),
            Source::State => self.state_ready(now),
            Source::Listener => self.may_accept = true,
            Source::Signal => {
                let asked = self.signals.take();
                if asked.measure {
                    self.measure(now);
                }
                if asked.stop && !self.stopping {
                    self.stopping = true;
                    if self.socket.is_some() {
                        say!("stopping");
                        self.tell(now, Input::Command(Command::Shutdown));
                    }
                }
            }
        }
    }

    /// Look how large the image is, and say so.
    fn measure(&mut self, now: Instant) {
        if let Some(bytes) = self.size.look(now) {
            self.tell(now, Input::Capacity(bytes));
        }
        if self.socket.is_none() {
            self.size.rest();
        }
    }

    /// Work on the disk; everything that is finished by now is one batch.
    fn pump(&mut self, now: Instant) -> io::Result<()> {
        let mut done = core::mem::take(&mut self.completions);
        self.disk.pump(now, &mut self.memory, &mut done)?;
        if !done.is_empty() {
            let told = self.backend.handle_input(now, Input::DiskDone(&done));
            self.told(now, told);
            done.clear();
        }
        self.completions = done;
        Ok(())
    }

    fn tell(&mut self, now: Instant, input: Input<'_, GuestMem>) {
        let told = self.backend.handle_input(now, input);
        self.told(now, told);
    }

    fn told(&mut self, now: Instant, told: Result<(), ApiMisuse>) {
        if let Err(misuse) = told {
            self.misused(&misuse);
        }
        self.drain(now);
    }

    /// A bug of ours. The client may have provoked it and is cut off; the
    /// daemon lives.
    fn misused(&mut self, misuse: &ApiMisuse) {
        say!("internal error: {misuse}");
        debug_assert!(false, "the back-end was misused: {misuse}");
        if let Some(socket) = &mut self.socket {
            socket.shut();
        }
    }

    /// Carry out every wish, and give the answers that some want.
    fn drain(&mut self, now: Instant) {
        loop {
            while let Some(output) = self.backend.poll_output() {
                self.obey(now, output);
            }
            let Some(answer) = self.answers.pop_front() else {
                break;
            };
            let input = match answer {
                Answer::Mapped(result) => Input::Mapped(result),
                Answer::MappedMissing(result) => Input::MappedMissing(result),
                Answer::FaultsOpened(result) => Input::FaultsOpened(result),
                Answer::InflightMapped(result) => Input::InflightMapped(result),
                Answer::LogMapped(result) => Input::LogMapped(result),
                Answer::InflightAllocated(result) => Input::InflightAllocated(result),
                Answer::StateSaved(result) => Input::StateSaved(result),
                Answer::StateLoaded(result) => Input::StateLoaded(result),
                Answer::ChannelClosed(why) => Input::ChannelClosed(why),
            };
            if let Err(misuse) = self.backend.handle_input(now, input) {
                self.misused(&misuse);
            }
        }
        if self.socket.is_none() && self.backend.is_idle() {
            self.forget_client();
        }
    }

    fn obey(&mut self, now: Instant, output: Output) {
        match output {
            Output::Disk(id) => {
                let Some(request) = self.backend.request(id) else { return };
                // Zeroes in place of memory that is gone may have made it what
                // it is: the guest never asked for that.
                if sigbus::is_hit() {
                    self.disk.refuse(&request);
                } else {
                    self.disk.start(now, &request, &mut self.memory);
                }
            }
            Output::Cancel(id) => self.disk.cancel(id),
            // The loop does the rest, before it gives anything to the disk.
            Output::AcquireStore => self.store.acquire(now),
            Output::ReleaseStore => {
                self.disk.close();
                self.store.release();
            }
            Output::Call { handle, .. } | Output::Err { handle, .. } => self.handles.signal(handle),
            Output::Send { bytes, handles } => {
                if let Some(socket) = &mut self.socket
                    && let Err(error) = socket.send(bytes, &handles, &self.handles)
                {
                    say_limited!("cannot answer the front-end: {error}");
                    // The back-end hears of it when its wishes are carried out.
                    socket.shut();
                }
            }
            Output::ChannelSend { bytes, handles } => self.send_on_channel(bytes, &handles),
            Output::WatchChannel { handle } => self.watch_channel(handle),
            Output::Map { regions } => {
                let mapped = self.memory.map(&regions, &self.handles);
                self.answers.push_back(Answer::Mapped(mapped));
            }
            Output::Unmap => self.memory.unmap(),
            Output::OpenFaults => {
                let opened = self.faults.open(self.socket.as_ref());
                let opened = opened.map(|fd| self.handles.insert(fd));
                self.answers.push_back(Answer::FaultsOpened(opened));
            }
            Output::MapMissing { regions } => {
                let mapped = self
                    .faults
                    .current()
                    .and_then(|faults| self.memory.map_missing(&regions, &self.handles, faults));
                self.answers.push_back(Answer::MappedMissing(mapped));
            }
            Output::CloseFaults { all_there } => self.faults.close(all_there),
            Output::AllocInflight { size } => {
                let allocated = memory::alloc_inflight(size).map(|fd| self.handles.insert(fd));
                self.answers.push_back(Answer::InflightAllocated(allocated));
            }
            Output::MapInflight { handle, offset, size } => {
                let mapped = memory::map_shared(&self.handles, handle, offset, size);
                self.answers.push_back(Answer::InflightMapped(mapped));
            }
            Output::MapLog { handle, offset, size } => {
                let mapped = memory::map_shared(&self.handles, handle, offset, size);
                self.answers.push_back(Answer::LogMapped(mapped));
            }
            Output::WatchKick { vring, handle } => self.watch(vring, handle),
            Output::SaveState { handle, bytes } => self.save_state(now, handle, bytes),
            Output::LoadState { handle, most } => self.load_state(now, handle, most),
            Output::Release(handle) => {
                self.forget_state(handle);
                self.handles.release(handle);
            }
            Output::Close(reason) => {
                say!("closing the connection: {reason}");
                self.drop_socket();
            }
            Output::Event(event) => {
                if let Event::VringRunning { vring, resubmitted, .. } = event {
                    self.disk.vring_runs(vring, resubmitted);
                }
                events::say(&event);
            }
        }
    }

    fn kick_handle(&self, vring: u16) -> Option<Handle> {
        self.kicks.get(usize::from(vring)).copied().flatten()
    }

    fn watch(&mut self, vring: u16, handle: Option<Handle>) {
        let index = usize::from(vring);
        if let Some(old) = self.kick_handle(vring) {
            if let Some(fd) = self.handles.get(old) {
                self.poller.remove(fd);
            }
            self.kicks[index] = None;
        }
        let Some(fd) = handle.and_then(|h| self.handles.get(h)) else {
            return;
        };
        if self.kicks.len() <= index {
            self.kicks.resize(index + 1, None);
        }
        match self.poller.add(fd, Source::Kick(vring)) {
            Ok(()) => self.kicks[index] = handle,
            Err(errno) => {
                let why = super::error::describe(errno);
                say_limited!("vring {vring}: expected an event descriptor to be kicked by: {why}");
                if let Some(socket) = &mut self.socket {
                    socket.shut();
                }
            }
        }
    }
}
