//! What a back-end knows of a device beyond its rings and the inflight region,
//! through a pipe.
// spec: vhost-user, "Migrating back-end state"

use super::{Client, ClientError, system};
use crate::Handle;
use crate::frontend::{Command, Event};
use crate::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, OwnedFd};

/// Most bytes of a state that are taken.
const STATE_MAX: u64 = 16 << 20;

/// How long one look at the pipe waits, before the socket has its turn.
const SLICE: Duration = Duration::from_millis(2);

impl Client {
    /// The state of the device, as the back-end has it. The vrings have to be
    /// stopped.
    pub fn save_device_state(&mut self) -> Result<Vec<u8>, ClientError> {
        let (ours, theirs) = pipe()?;
        let ours = self.open_channel(|handle| Command::SaveState { handle }, theirs, ours)?;
        let mut state = Vec::new();
        let mut piece = [0; 4096];
        let until = self.clock.now() + self.config.patience;
        loop {
            match rustix::io::read(&ours, &mut piece) {
                Ok(0) => break,
                Ok(n) => state.extend_from_slice(&piece[..n]),
                Err(Errno::AGAIN) if self.clock.now() < until => ready(&ours, PollFlags::IN)?,
                Err(Errno::AGAIN) => {
                    return Err(ClientError::TimedOut { what: "the device's state", answer: None });
                }
                Err(errno) => return Err(system("cannot read the device's state", errno)),
            }
            if state.len() as u64 > STATE_MAX {
                return Err(ClientError::TooBig { room: STATE_MAX, wanted: state.len() as u64 });
            }
        }
        self.check_device_state()?;
        Ok(state)
    }

    /// Give the back-end the state that another one has saved. The vrings have to
    /// be stopped.
    pub fn load_device_state(&mut self, state: &[u8]) -> Result<(), ClientError> {
        let (theirs, ours) = pipe()?;
        let ours = self.open_channel(|handle| Command::LoadState { handle }, theirs, ours)?;
        let mut left = state;
        let until = self.clock.now() + self.config.patience;
        while !left.is_empty() {
            match rustix::io::write(&ours, left) {
                Ok(n) => left = &left[n..],
                Err(Errno::AGAIN) if self.clock.now() < until => ready(&ours, PollFlags::OUT)?,
                Err(Errno::AGAIN) => {
                    return Err(ClientError::TimedOut { what: "the device's state", answer: None });
                }
                // It has seen enough; the check says what it thinks of it.
                Err(Errno::PIPE) => break,
                Err(errno) => return Err(system("cannot write the device's state", errno)),
            }
        }
        drop(ours);
        self.check_device_state()
    }

    /// Offer the back-end its end of a pipe; ours comes back, or what it wants
    /// used instead.
    fn open_channel(
        &mut self,
        command: impl Fn(Handle) -> Command,
        theirs: OwnedFd,
        ours: OwnedFd,
    ) -> Result<OwnedFd, ClientError> {
        let handle = self.handles.insert(theirs);
        let opened = self.answered(command(handle), |event| match event {
            Event::StateChannel { instead } => Some(*instead),
            _ => None,
        });
        // As long as this copy is open, nobody sees the end.
        self.handles.release(handle);
        let Some(instead) = opened? else { return Ok(ours) };
        let fd = self.handles.get(instead).map(|fd| fd.try_clone_to_owned());
        self.handles.release(instead);
        let what = "cannot use the back-end's channel";
        let lost = || std::io::Error::other("no descriptor");
        fd.unwrap_or_else(|| Err(lost())).map_err(|source| ClientError::System { what, source })
    }

    fn check_device_state(&mut self) -> Result<(), ClientError> {
        let checked = |event: &Event| (*event == Event::StateChecked).then_some(());
        self.answered(Command::CheckState, checked)
    }

    /// Give a command and wait for its answer or a refusal.
    fn answered<T>(
        &mut self,
        command: Command,
        answer: impl Fn(&Event) -> Option<T>,
    ) -> Result<T, ClientError> {
        let refused = |event: &Event| matches!(event, Event::Refused { .. });
        self.events.retain(|event| !refused(event) && answer(event).is_none());
        self.command(command)?;
        let over = |c: &Self| c.events.iter().any(|e| refused(e) || answer(e).is_some());
        self.wait("the device's state", over)?;
        for event in &self.events {
            if let Event::Refused { message, status } = *event {
                return Err(ClientError::Refused { message, status });
            }
            if let Some(answer) = answer(event) {
                return Ok(answer);
            }
        }
        Err(ClientError::TimedOut { what: "the device's state", answer: None })
    }
}

/// Reading and writing end, neither of which waits.
fn pipe() -> Result<(OwnedFd, OwnedFd), ClientError> {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| system("cannot make a pipe", e))
}

fn ready(fd: impl AsFd, flags: PollFlags) -> Result<(), ClientError> {
    let timeout = Timespec { tv_sec: 0, tv_nsec: SLICE.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(system("cannot wait", e)),
    }
}
