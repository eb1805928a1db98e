//! DEVICE_STATE between real daemons, through real pipes, by the front-end half
//! and its client.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;
mod frontend_rig;

use daemon_rig::Scratch;
use frontend_rig::{Daemon, Dir, config};
use midflight::adapter::client::{Client, ClientError};
use midflight::blk::SavedState;
use midflight::frontend::{Command, Event};
use midflight::wire::features::protocol;
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R, TransferState};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn client(dir: &Dir, socket: &str) -> Client {
    let mut config = config(dir);
    config.socket = dir.socket_of(socket);
    config.frontend.protocol_features |= protocol::DEVICE_STATE;
    Client::connect(config).unwrap()
}

/// The write cache byte of the configuration space.
const WRITEBACK: u32 = 32;

fn set_cache(client: &mut Client, writeback: bool) {
    let data = bytes::Bytes::copy_from_slice(&[u8::from(writeback)]);
    client.command(Command::WriteConfig { offset: WRITEBACK, flags: 0, data }).unwrap();
    client.wait("the write", |_| true).unwrap();
    assert_eq!(client.read_config(WRITEBACK, 1).unwrap(), [u8::from(writeback)]);
}

#[test]
fn device_state_moves_between_daemons_with_the_guest() {
    let dir = Dir::new("state-moves");
    let _a = Daemon::midflight_at(&dir, &dir.socket_of("a"), &[]);
    let _b = Daemon::midflight_at(&dir, &dir.socket_of("b"), &[]);
    let mut source = client(&dir, "a");
    source.start().unwrap();
    set_cache(&mut source, false);
    source.write(0, 0, &[7; 4096]).unwrap();
    source.suspend().unwrap();
    let state = source.save_device_state().unwrap();
    assert!(!SavedState::decode(&state).unwrap().writeback);

    let mut destination = client(&dir, "b");
    assert_eq!(destination.read_config(WRITEBACK, 1).unwrap(), [1], "as a daemon begins");
    destination.load_device_state(&state).unwrap();
    destination.take_over(source.hand_over().unwrap()).unwrap();
    let pages: Vec<u64> = (0..(16 << 20) / 4096).map(|page| page * 4096).collect();
    source.copy_pages(&pages, destination.memory()).unwrap();
    destination.start().unwrap();
    assert_eq!(destination.read_config(WRITEBACK, 1).unwrap(), [0], "as the guest chose");
    let mut back = [0; 4096];
    destination.read(0, 0, &mut back).unwrap();
    assert_eq!(back, [7; 4096]);
}

#[test]
fn device_state_is_refused_while_the_device_runs_and_after_that_works() {
    let dir = Dir::new("state-refused");
    let _daemon = Daemon::midflight_at(&dir, &dir.socket_of("a"), &[]);
    let mut guest = client(&dir, "a");
    guest.start().unwrap();
    // The front-end half does not ask a running back-end at all.
    assert!(matches!(guest.save_device_state(), Err(ClientError::Misuse(_))));
    guest.stop().unwrap();
    for _ in 0..50 {
        let state = guest.save_device_state().unwrap();
        guest.load_device_state(&state).unwrap();
    }
    // What is no state is refused, and the connection lives.
    let refused = |result| match result {
        Err(ClientError::Refused { message, status }) => (message, status),
        other => panic!("{other:?}"),
    };
    let state = guest.save_device_state().unwrap();
    let endless = vec![0x5a; 1 << 20];
    for bad in [&b""[..], b"garbage", &state[..31], &endless[..]] {
        assert_eq!(refused(guest.load_device_state(bad)), ("CHECK_DEVICE_STATE", 1));
    }
    guest.start().unwrap();
    guest.write(0, 0, &[1; 512]).unwrap();
    assert!(!guest.take_events().iter().any(|e| matches!(e, Event::Disconnected { .. })));
}

#[test]
fn device_state_through_a_pipe_that_nobody_writes_does_not_hold_up_the_daemon() {
    let scratch = Scratch::new();
    let mut daemon = daemon_rig::Daemon::serve(&scratch, &[]);
    let mut client = daemon_rig::Client::connect(&scratch.socket());
    client.negotiate();
    let before = daemon.descriptors();
    let load = TransferState { direction: 1, phase: 0 };
    let (ours, theirs) = rustix::pipe::pipe().map(|(read, write)| (write, read)).unwrap();
    let handle = client.attach(&theirs);
    assert_eq!(client.ask(R::SetDeviceStateFd(load, handle)), Body::DeviceState(0, None));
    // Other messages are answered meanwhile.
    assert!(matches!(client.ask(R::GetQueueNum), Body::U64(_)));
    // The check waits, but not for ever.
    let began = Instant::now();
    assert_eq!(client.ask(R::CheckDeviceState), Body::U64(1));
    let waited = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&waited), "{waited:?}");
    daemon.wait_for("the other end took more than 10 s");
    assert_eq!(daemon.descriptors(), before);
    drop(ours);
    // Something else than a pipe is not even tried.
    let file = std::fs::File::open(scratch.image()).unwrap();
    let handle = client.attach(file.as_fd());
    assert_eq!(client.ask(R::SetDeviceStateFd(load, handle)), Body::DeviceState(0, None));
    assert_eq!(client.ask(R::CheckDeviceState), Body::U64(1));
    daemon.wait_for("expected a pipe or a socket");
    // Nobody reads: the front-end leaves, and nothing of it stays.
    let (_read, write) = rustix::pipe::pipe().unwrap();
    let handle = client.attach(&write);
    let save = TransferState { direction: 0, phase: 0 };
    assert_eq!(client.ask(R::SetDeviceStateFd(save, handle)), Body::DeviceState(0, None));
    assert_eq!(client.ask(R::CheckDeviceState), Body::U64(0), "it fits into the pipe");
    drop(client);
    daemon.wait_for("has disconnected");
    assert_eq!(daemon.stop(), 0);
}
