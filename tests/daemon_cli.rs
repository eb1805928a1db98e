//! What the daemon says to wrong options, and what it prints when asked.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Daemon, Scratch, command, text};
use std::process::Stdio;

/// Run to the end, and expect exit code 2 and one line; that line.
fn refused(args: &[&str]) -> String {
    let output = command(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    let line = stderr.trim_end();
    line.strip_prefix("midflight: ").unwrap_or_else(|| panic!("no prefix: {line}")).to_owned()
}

#[test]
fn daemon_refuses_bad_options_with_one_line_and_code_2() {
    let scratch = Scratch::new();
    let (socket, image) = (scratch.socket(), scratch.image());
    let with = |more: &[&str]| {
        let mut args = vec!["serve", "--socket-path", text(&socket), "--blk-file", text(&image)];
        args.extend(more);
        refused(&args)
    };
    assert!(with(&["--bogus"]).contains("unexpected argument '--bogus'"));
    assert!(with(&["--num-queues", "0"]).contains("0 is not in 1..=256"));
    assert!(with(&["--num-queues", "many"]).contains("--num-queues"));
    assert!(with(&["--queue-size-max", "100"]).contains("power of two from 2 to 32768"));
    assert!(with(&["--logical-block-size", "8192"]).contains("512, 1024, 2048 or 4096"));
    assert!(with(&["--serial", "much longer than 20 characters"]).contains("at most 20"));
    assert!(with(&["--throttle-latency-us", "0"]).contains("--throttle-latency-us"));
    assert!(with(&["--fd", "3"]).contains("cannot be used with"));
    assert!(with(&["--blk-file", "/again"]).contains("cannot be used multiple times"));
    assert!(refused(&["serve", "--blk-file", text(&image)]).contains("--socket-path or --fd"));
    assert!(refused(&["--socket-path", text(&socket)]).contains("--blk-file is required"));
    assert!(refused(&[]).contains("required"));
    assert!(refused(&["frobnicate"]).contains("frobnicate"));
    assert!(!socket.exists());
}

#[test]
fn daemon_refuses_images_that_are_none() {
    let scratch = Scratch::new();
    let socket = scratch.socket();
    let with = |image: &str, more: &[&str]| {
        let mut args = vec!["serve", "--socket-path", text(&socket), "--blk-file", image];
        args.extend(more);
        refused(&args)
    };
    let missing = scratch.path("missing");
    let want = format!("cannot open {}: no such file or directory", missing.display());
    assert_eq!(with(text(&missing), &[]), want);
    assert!(with(text(&scratch.0), &[]).contains("neither a regular file nor a block device"));
    assert!(with("/dev/null", &[]).contains("neither a regular file nor a block device"));
    let odd = scratch.path("odd");
    std::fs::write(&odd, [0; 1000]).unwrap();
    assert!(
        with(text(&odd), &[]).contains("1000 bytes, expected a multiple of the block size 512")
    );
    std::fs::write(&odd, [0; 1536]).unwrap();
    assert!(with(text(&odd), &["--logical-block-size", "1024"]).contains("1536 bytes"));
    let empty = scratch.path("empty");
    std::fs::write(&empty, []).unwrap();
    assert!(with(text(&empty), &[]).contains("0 bytes"));
    assert!(
        with(text(&scratch.path("a\nb")), &[]).contains("a\\nb"),
        "one line, whatever it quotes"
    );
}

#[test]
fn daemon_refuses_descriptors_that_are_no_sockets() {
    let scratch = Scratch::new();
    let image = scratch.image();
    let with = |fd: &str| refused(&["serve", "--fd", fd, "--blk-file", text(&image)]);
    assert!(with("2").contains("above standard error"));
    assert!(with("77").contains("--fd 77: expected the number of an open descriptor"));
    assert!(with("-1").contains("-1"));
}

#[test]
fn daemon_prints_capabilities_whatever_else_is_asked() {
    for args in [
        &["--print-capabilities"][..],
        &["serve", "--print-capabilities"],
        &["--print-capabilities", "--bogus", "--fd=3", "--socket-path=/x"],
    ] {
        let output = command(args).stdout(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["type"], "block");
        assert_eq!(printed["features"], serde_json::json!(["read-only", "blk-file"]));
    }
}

#[test]
fn daemon_options_of_the_conventions_work_without_a_subcommand() {
    let scratch = Scratch::new();
    let socket = format!("--socket-path={}", scratch.socket().display());
    let image = format!("--blk-file={}", scratch.image().display());
    let mut daemon = Daemon::spawn(&mut command(&[&socket, &image, "--read-only"]));
    daemon.wait_for("listening on");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn daemon_help_and_version_go_to_standard_output() {
    for (args, expected) in
        [(["serve", "--help"], "--throttle-latency-us"), (["--version", "--version"], "midflight ")]
    {
        let args = if args[0] == args[1] { &args[..1] } else { &args[..] };
        let output = command(args).stdout(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected));
    }
}
