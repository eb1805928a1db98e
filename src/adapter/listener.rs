//! Where clients come from: a socket of our own, or an inherited one.

use super::error::{Refusal, describe};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, flock, open, stat, statat};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, sockopt,
};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Clients that may wait while one is served. More are refused by the kernel.
const BACKLOG: i32 = 16;

/// A listening socket, and the path to remove at exit if it is ours.
pub struct Listener {
    fd: OwnedFd,
    path: Option<OwnPath>,
}

/// What `--fd` turned out to be.
pub enum Inherited {
    /// Clients come one after the other.
    Listening(Listener),
    /// There is one client, and never another.
    Connected(OwnedFd),
}

struct OwnPath {
    path: PathBuf,
    /// Device and inode of the socket we made there.
    identity: (u64, u64),
}

impl Listener {
    /// Make a socket at `path` and listen.
    ///
    /// A live socket is never taken over. A socket whose daemon has died
    /// refuses connections and is replaced. Whoever does this holds a lock on
    /// the directory meanwhile, so two daemons started together cannot both find the
    /// same socket dead, and the later remove the socket of the earlier.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        let address = address(path)?;
        let _turn = directory_lock(path)?;
        let dead = examine(path, &address)?;
        let fd = unix_socket().map_err(|e| cannot_listen(path, e))?;
        if let Some(dead) = dead {
            // Not removed if it changed since we looked: then a program that
            // does not know of our lock has just made it.
            if identity(path) == Some(dead) {
                rustix::fs::unlink(path).map_err(|e| cannot_listen(path, e))?;
            }
        }
        match bind(&fd, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => return Err(busy(path)),
            Err(errno) => return Err(cannot_listen(path, errno)),
        }
        let listener = Self {
            path: identity(path).map(|identity| OwnPath { path: path.to_owned(), identity }),
            fd,
        };
        listen(&listener.fd, BACKLOG).map_err(|e| cannot_listen(path, e))?;
        Ok(listener)
    }

    /// Take the next client, if one waits.
    pub fn accept(&self) -> rustix::io::Result<OwnedFd> {
        accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(own) = &self.path
            && identity(&own.path) == Some(own.identity)
        {
            // Somebody may have removed it already.
            let _ = rustix::fs::unlink(&own.path);
        }
    }
}

/// Say early, before any waiting, that `path` is busy or no place for a socket.
pub fn probe(path: &Path) -> Result<(), Refusal> {
    examine(path, &address(path)?).map(|_| ())
}

/// Take over an inherited descriptor. The convention does not say whether it
/// listens or is connected; the socket knows.
// spec: vhost-user, "Backend program conventions"
pub fn inherit(raw: RawFd) -> Result<Inherited, Refusal> {
    let refuse = |what: &str| Refusal(format!("--fd {raw}: {what}"));
    if (0..=2).contains(&raw) {
        return Err(refuse("expected a descriptor above standard error (2)"));
    }
    if raw < 0 {
        return Err(refuse("expected the number of an open descriptor"));
    }
    // SAFETY: only asks whether the number names an open descriptor; the
    // borrowed value does not outlive this statement.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(raw) });
    let Ok(flags) = flags else {
        return Err(refuse("expected the number of an open descriptor"));
    };
    // SAFETY: the descriptor is open, and nothing in this process has opened a
    // descriptor that it uses by number: the operator gave it to us for keeps.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let socket = sockopt::socket_type(&fd);
    if socket != Ok(SocketType::STREAM) || sockopt::socket_domain(&fd) != Ok(AddressFamily::UNIX) {
        return Err(refuse("expected a UNIX stream socket"));
    }
    let system = |errno| refuse(&describe(errno));
    fcntl_setfd(&fd, flags | FdFlags::CLOEXEC).map_err(system)?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(system)?;
    if sockopt::socket_acceptconn(&fd).map_err(system)? {
        return Ok(Inherited::Listening(Listener { fd, path: None }));
    }
    if rustix::net::getpeername(&fd).is_err() {
        return Err(refuse("expected a socket that listens or is connected"));
    }
    Ok(Inherited::Connected(fd))
}

fn address(path: &Path) -> Result<SocketAddrUnix, Refusal> {
    SocketAddrUnix::new(path).map_err(|_| {
        Refusal(format!("socket path {} is too long: expected at most 107 bytes", path.display()))
    })
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// `Ok(None)` if nothing is there, the identity of a dead socket, or why not.
fn examine(path: &Path, address: &SocketAddrUnix) -> Result<Option<(u64, u64)>, Refusal> {
    let there = match statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => there,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(cannot_listen(path, errno)),
    };
    if FileType::from_raw_mode(there.st_mode) != FileType::Socket {
        return Err(Refusal(format!("{} exists and is not a socket", path.display())));
    }
    let probe = unix_socket().map_err(|e| cannot_listen(path, e))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => Ok(Some((there.st_dev, there.st_ino))),
        Err(Errno::NOENT) => Ok(None),
        // An answer, a full backlog, another kind of socket: somebody lives there.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(busy(path)),
        Err(errno) => Err(cannot_listen(path, errno)),
    }
}

/// Hold the directory of `path` against other daemons of our kind.
fn directory_lock(path: &Path) -> Result<OwnedFd, Refusal> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(directory, flags, Mode::empty()).map_err(|e| cannot_listen(path, e))?;
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(cannot_listen(path, errno)),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = stat(path).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::Socket)
        .then_some((found.st_dev, found.st_ino))
}

fn busy(path: &Path) -> Refusal {
    Refusal(format!("socket {} is in use", path.display()))
}

fn cannot_listen(path: &Path, errno: Errno) -> Refusal {
    Refusal(format!("cannot listen on {}: {}", path.display(), describe(errno)))
}
