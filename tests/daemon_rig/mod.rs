//! The real daemon, and a client made of the library's wire and driver.

#![allow(dead_code)] // Each test uses its part.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use midflight::Handle;
use midflight::driver::{
    BlkDone, BlkDriver, BlkOp, BlkRequest, Framing, RequestBuffers, RingFeatures, RingLayout, Span,
};
use midflight::wire::features::virtio;
use midflight::wire::{
    Decoder, Dialect, Envelope, FrontendReplies, FrontendReplyBody, FrontendRequest,
    InflightDescription, MemRegion, VringAddr, VringFile, VringState, encode_request,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Far longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the images.
pub const DISK: u64 = 1 << 20;

/// A directory that is gone after the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("midflight-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// An image of zeroes.
    pub fn image(&self) -> PathBuf {
        let path = self.path("image");
        if !path.exists() {
            std::fs::File::create(&path).unwrap().set_len(DISK).unwrap();
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program, with arguments that may be paths.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_midflight"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A running daemon. Killed when dropped.
pub struct Daemon {
    child: Child,
    lines: Receiver<String>,
    /// Every line so far.
    pub log: Vec<String>,
}

impl Daemon {
    /// Serve the scratch image on the scratch socket, with further options.
    pub fn serve(scratch: &Scratch, options: &[&str]) -> Self {
        let (socket, image) = (scratch.socket(), scratch.image());
        let mut args = vec!["serve", "--socket-path", text(&socket), "--blk-file", text(&image)];
        args.extend(options);
        let mut daemon = Self::spawn(&mut command(&args));
        daemon.wait_for("listening on");
        daemon
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, log: Vec::new() }
    }

    /// Wait for a line that contains `text`; all before it are kept in `log`.
    pub fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line with {text:?} in {:#?}", self.log)
                }
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Wait for the end: exit code, or minus the signal.
    pub fn wait(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.log.extend(self.lines.iter());
                return status.code().unwrap_or_else(|| -status.signal().unwrap());
            }
            assert!(Instant::now() < end, "the daemon does not end: {:#?}", self.log);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        assert_eq!(self.wait(), -9);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Descriptors the daemon has open now.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Resident memory in KiB that is the daemon's own.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Mappings of memory that a peer shared.
    pub fn peer_mappings(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        maps.lines().filter(|line| line.contains("/memfd:")).count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A front-end's end of the socket.
pub struct Client {
    socket: UnixStream,
    fds: Vec<OwnedFd>,
    decoder: Decoder<FrontendReplies, Handle>,
    /// Protocol features to accept.
    pub protocol: u64,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub fn over(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let decoder = Decoder::new(Dialect::default());
        let protocol = midflight::backend::OFFERED_PROTOCOL_FEATURES;
        Self { socket, fds: Vec::new(), decoder, protocol }
    }

    /// A copy of a descriptor to send with a message.
    pub fn attach(&mut self, fd: impl AsFd) -> Handle {
        self.fds.push(fd.as_fd().try_clone_to_owned().unwrap());
        Handle(self.fds.len() as u32 - 1)
    }

    /// Close the copies; their handles mean nothing any more.
    pub fn forget_attached(&mut self) {
        self.fds.clear();
    }

    pub fn fd(&self, handle: Handle) -> BorrowedFd<'_> {
        self.fds[handle.0 as usize].as_fd()
    }

    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    pub fn send(&self, message: FrontendRequest<Handle>, need_reply: bool) {
        let envelope = Envelope { message, need_reply };
        let (bytes, handles) = encode_request(&envelope, &Dialect::default()).unwrap();
        let fds: Vec<_> = handles.iter().map(|h| self.fd(*h)).collect();
        assert_eq!(self.send_bytes(&bytes, &fds).unwrap(), bytes.len());
    }

    /// The next answer; `None` if the daemon has closed.
    pub fn receive(&mut self) -> Option<FrontendReplyBody<Handle>> {
        loop {
            if let Some(reply) = self.decoder.next() {
                return Some(reply.unwrap().message.body);
            }
            let mut buffer = vec![0; self.decoder.wanted()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(&mut buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(&self.socket, &mut iov, &mut control, flags) {
                Ok(got) => got.bytes,
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(errno) => panic!("no answer: {errno}"),
            };
            let mut handles = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    for fd in fds {
                        self.fds.push(fd);
                        handles.push(Handle(self.fds.len() as u32 - 1));
                    }
                }
            }
            if got == 0 {
                return None;
            }
            self.decoder.push(&buffer[..got], handles).unwrap();
        }
    }

    pub fn ask(&mut self, message: FrontendRequest<Handle>) -> FrontendReplyBody<Handle> {
        let name = message.name();
        self.send(message, false);
        self.receive().unwrap_or_else(|| panic!("{name}: the daemon has closed"))
    }

    /// Send, and expect a positive acknowledgement.
    pub fn ok(&mut self, message: FrontendRequest<Handle>) {
        let name = message.name();
        self.send(message, true);
        assert_eq!(self.receive(), Some(FrontendReplyBody::U64(0)), "{name}");
    }

    pub fn negotiate(&mut self) {
        let FrontendReplyBody::U64(offered) = self.ask(FrontendRequest::GetFeatures) else {
            panic!("features are a number")
        };
        self.send(FrontendRequest::SetProtocolFeatures(self.protocol), false);
        self.send(FrontendRequest::SetOwner, false);
        let wanted =
            virtio::VERSION_1 | virtio::BLK_FLUSH | virtio::BLK_ZONED | virtio::PROTOCOL_FEATURES;
        self.ok(FrontendRequest::SetFeatures(offered & wanted));
    }
}

/// Guest memory: bytes at guest-physical address 0.
pub const GUEST: u64 = 4 << 20;
/// Where the front-end says it has guest memory.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
const RING: u16 = 64;

/// A guest with one vring, whose memory is a file to share.
pub struct Guest {
    pub file: OwnedFd,
    pub memory: GuestMemoryMmap,
    pub driver: BlkDriver,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub inflight: Option<(InflightDescription, OwnedFd)>,
    /// Where a region of guest memory ends and the next one begins, with both
    /// ends. All of them are parts of one file.
    pub borders: Vec<u64>,
    next: u64,
}

impl Guest {
    pub fn new() -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, GUEST).unwrap();
        Self::over(file)
    }

    /// A guest whose memory is this file.
    pub fn over(file: OwnedFd) -> Self {
        let offset = FileOffset::new(file.try_clone().unwrap().into(), 0);
        let range = (GuestAddress(0), GUEST as usize, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let features = RingFeatures::default();
        let layout = RingLayout::contiguous(RING, 0x1000).unwrap();
        let driver = BlkDriver::start(&memory, layout, features).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Self {
            file,
            memory,
            driver,
            kick: event(),
            call: event(),
            inflight: None,
            borders: vec![0, GUEST],
            next: 0,
        }
    }

    /// Connect everything: memory, inflight region, vring 0 from `base`.
    pub fn start(&mut self, client: &mut Client, base: u16) {
        client.negotiate();
        if self.inflight.is_none() {
            let asked = InflightDescription {
                mmap_size: 0,
                mmap_offset: 0,
                num_queues: 1,
                queue_size: RING,
            };
            match client.ask(FrontendRequest::GetInflightFd(asked)) {
                FrontendReplyBody::Inflight(description, handle) => {
                    let fd = client.fd(handle).try_clone_to_owned().unwrap();
                    self.inflight = Some((description, fd));
                }
                other => panic!("{other:?}"),
            }
        }
        for piece in self.borders.windows(2) {
            let (at, size) = (piece[0], piece[1] - piece[0]);
            let region =
                MemRegion { guest_addr: at, size, user_addr: USER_BASE + at, mmap_offset: at };
            let memory = client.attach(&self.file);
            client.ok(FrontendRequest::AddMemReg(region, memory));
        }
        self.resume(client, base);
    }

    /// Start vring 0 from `base`, on a connection that has all the rest.
    pub fn resume(&mut self, client: &mut Client, base: u16) {
        let (description, fd) = self.inflight.as_ref().unwrap();
        let handle = client.attach(fd);
        client.ok(FrontendRequest::SetInflightFd(*description, handle));
        client.ok(FrontendRequest::SetVringNum(VringState { index: 0, num: RING.into() }));
        client.ok(FrontendRequest::SetVringBase(VringState { index: 0, num: base.into() }));
        let layout = self.driver.ring().layout();
        client.ok(FrontendRequest::SetVringAddr(VringAddr {
            index: 0,
            flags: 0,
            desc: USER_BASE + layout.desc,
            used: USER_BASE + layout.used,
            avail: USER_BASE + layout.avail,
            log: 0,
        }));
        let call = Some(client.attach(&self.call));
        client.ok(FrontendRequest::SetVringCall(VringFile { index: 0, handle: call }));
        let kick = Some(client.attach(&self.kick));
        client.ok(FrontendRequest::SetVringKick(VringFile { index: 0, handle: kick }));
        client.ok(FrontendRequest::SetVringEnable(VringState { index: 0, num: 1 }));
    }

    /// GET_VRING_BASE; the base.
    pub fn stop(&mut self, client: &mut Client) -> u16 {
        let state = VringState { index: 0, num: 0 };
        match client.ask(FrontendRequest::GetVringBase(state)) {
            FrontendReplyBody::VringState(state) => state.num as u16,
            other => panic!("{other:?}"),
        }
    }

    /// Heads in flight by the region.
    pub fn in_flight(&self) -> usize {
        let (description, fd) = self.inflight.as_ref().unwrap();
        let mut bytes = vec![0; description.mmap_size as usize];
        rustix::io::pread(fd, &mut bytes, description.mmap_offset).unwrap();
        (0..usize::from(RING)).filter(|head| bytes[16 + 16 * head] == 1).count()
    }

    /// Tokens of what has come back so far, all of it well.
    pub fn reap_now(&mut self) -> Vec<u64> {
        let mut done = Vec::new();
        while let Some(one) = self.driver.reap(&self.memory).unwrap() {
            assert_eq!(one.status.code(), 0);
            done.push(one.token);
        }
        done
    }

    /// Requests that can be outstanding by their number: buffers of a later one
    /// are those of an earlier one.
    pub const SLOTS: u64 = 64;

    /// Where the data of a request is.
    pub fn slot(token: u64) -> u64 {
        0x10_0000 + token % Self::SLOTS * 0x2000
    }

    /// Queue a request of one 4 KiB block; data of a write is `fill`.
    pub fn submit(&mut self, op: BlkOp<'_>, fill: u8) -> u64 {
        let token = self.next;
        self.next += 1;
        let base = Self::slot(token);
        self.memory.write_slice(&[fill; 4096], GuestAddress(base)).unwrap();
        let data = [Span { addr: base, len: 4096 }];
        let none = matches!(op, BlkOp::Flush | BlkOp::Zone { .. });
        let data = if none { &data[..0] } else { &data[..] };
        let buffers =
            RequestBuffers { header: base + 4096, data, status: base + 5000, table: None };
        let request = BlkRequest { op, token };
        self.driver.submit(&self.memory, &request, &buffers, &Framing::CLASSIC).unwrap();
        token
    }

    /// How many requests there have been.
    pub fn submitted(&self) -> u64 {
        self.next
    }

    pub fn publish(&mut self) {
        self.driver.publish(&self.memory).unwrap();
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// What has come back, waiting for at least one.
    pub fn reap(&mut self) -> Vec<BlkDone> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut done = Vec::new();
            while let Some(one) = self.driver.reap(&self.memory).unwrap() {
                done.push(one);
            }
            if !done.is_empty() {
                return done;
            }
            assert!(Instant::now() < end, "no completion");
            let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut fds, Some(&timeout)).unwrap();
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }

    /// One request from start to end: its status byte and its data.
    pub fn run(&mut self, op: BlkOp<'_>, fill: u8) -> (u8, Vec<u8>) {
        let token = self.submit(op, fill);
        self.publish();
        let done = self.reap();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].token, token);
        let mut data = vec![0; 4096];
        self.memory.read_slice(&mut data, GuestAddress(Self::slot(token))).unwrap();
        (done[0].status.code(), data)
    }
}
