//! Memory of the peer that shrinks under the daemon, and disk I/O without
//! io_uring.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, Daemon, Guest, Scratch, command, text};
use midflight::driver::BlkOp;
use midflight::wire::{FrontendReplyBody, FrontendRequest, MemRegion};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::unix::process::CommandExt;

/// A fresh client gets served.
fn serves_another(scratch: &Scratch) {
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    assert_eq!(guest.run(BlkOp::Out { sector: 0 }, 9).0, 0);
}

#[test]
fn daemon_survives_guest_memory_that_is_truncated_under_it() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    assert_eq!(guest.run(BlkOp::Out { sector: 0 }, 1).0, 0);
    guest.submit(BlkOp::Out { sector: 0 }, 2);
    guest.driver.publish(&guest.memory).unwrap();
    ftruncate(&guest.file, 0).unwrap();
    rustix::io::write(&guest.kick, &1u64.to_ne_bytes()).unwrap();
    daemon.wait_for("memory that the front-end shares is gone");
    assert!(client.receive().is_none(), "the connection is closed");
    serves_another(&scratch);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn daemon_survives_an_inflight_region_that_is_truncated_under_it() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    drop(client);
    let (description, fd) = guest.inflight.take().unwrap();
    assert!(ftruncate(&fd, 0).is_err(), "the daemon's own region is sealed");
    // A front-end may bring one of its own, which is not.
    let own = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&own, description.mmap_offset + description.mmap_size).unwrap();
    guest.inflight = Some((description, own.try_clone().unwrap()));
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    ftruncate(&own, 0).unwrap();
    guest.submit(BlkOp::Out { sector: 0 }, 2);
    guest.publish();
    daemon.wait_for("memory that the front-end shares is gone");
    assert!(client.receive().is_none(), "the connection is closed");
    serves_another(&scratch);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn daemon_refuses_memory_files_that_are_too_short() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let mut client = Client::connect(&scratch.socket());
    client.negotiate();
    let file = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4096).unwrap();
    let handle = client.attach(&file);
    let region = MemRegion { guest_addr: 0, size: 8192, user_addr: 0x10000, mmap_offset: 0 };
    client.send(FrontendRequest::AddMemReg(region, handle), true);
    assert_eq!(client.receive(), Some(FrontendReplyBody::U64(1)));
    daemon.wait_for("at least 8192 bytes, got one of 4096");
    // The connection goes on.
    assert!(matches!(client.ask(FrontendRequest::GetQueueNum), FrontendReplyBody::U64(_)));
}

#[test]
fn daemon_bus_error_elsewhere_still_kills_and_says_so() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    daemon.signal(rustix::process::Signal::BUS);
    assert_eq!(daemon.wait(), -libc::SIGBUS);
    let last = daemon.log.last().unwrap();
    assert!(last.starts_with("midflight: fatal: bus error at address 0x"), "{last}");
}

/// Have io_uring_setup(2) fail with EPERM in the child, as in a container.
fn forbid_io_uring(command: &mut std::process::Command) {
    /// The same number on every architecture.
    const IO_URING_SETUP: u32 = 425;
    let stmt = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load_number = stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0);
    let is_setup = libc::sock_filter {
        jf: 1,
        ..stmt(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, IO_URING_SETUP)
    };
    let refuse = stmt(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let allow = stmt(libc::BPF_RET, libc::SECCOMP_RET_ALLOW);
    let mut filter = [load_number, is_setup, refuse, allow];
    // SAFETY: prctl may be called between fork and exec; the filter is a whole
    // program and is copied by the kernel.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
            let ok = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0;
            if ok { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

#[test]
fn daemon_without_io_uring_says_so_once_and_uses_threads() {
    let scratch = Scratch::new();
    let (socket, image) = (scratch.socket(), scratch.image());
    let in_memory = rustix::fs::statfs(&image).unwrap().f_type == 0x0102_1994;
    let mut command = command(&["--socket-path", text(&socket), "--blk-file", text(&image)]);
    forbid_io_uring(&mut command);
    let mut daemon = Daemon::spawn(&mut command);
    daemon.wait_for("listening on");
    if !in_memory {
        let said = daemon.log.iter().filter(|line| line.contains("io_uring is refused"));
        assert_eq!(said.count(), 1, "{:#?}", daemon.log);
    }
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    assert_eq!(guest.run(BlkOp::Out { sector: 16 }, 7).0, 0);
    assert_eq!(guest.run(BlkOp::Flush, 0).0, 0);
    assert_eq!(guest.run(BlkOp::In { sector: 16 }, 0), (0, vec![7; 4096]));
}

#[test]
fn daemon_asked_for_io_uring_only_refuses_to_start_without_it() {
    let scratch = Scratch::new();
    let (socket, image) = (scratch.socket(), scratch.image());
    let args = ["--socket-path", text(&socket), "--blk-file", text(&image), "--io-engine=io-uring"];
    let mut command = command(&args);
    forbid_io_uring(&mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
}
