//! The command line: what can be asked for, and how a refusal looks.

use super::disk::EngineChoice;
use super::disk_args::DiskArgs;
use super::error::Refusal;
use super::{capabilities, inspect, serve};
use crate::wire::Dialect;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code for anything the operator has to change.
const REFUSED: u8 = 2;

/// Serve a file or block device to a virtual machine over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "midflight", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    // A management layer that found the program by its JSON file passes the
    // conventional options directly, so `serve` may be left out.
    // spec: vhost-user, "Backend program conventions"
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Serve one disk until SIGTERM (also what happens without a subcommand)
    Serve(ServeArgs),
    /// Say what is in a captured migration stream or a dump of an inflight
    /// region
    Inspect(InspectArgs),
}

/// Options of `midflight inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// A stream written by QEMU's `migrate "exec:cat > FILE"`, or the bytes of
    /// an inflight region
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Virtqueues of a dumped region [default: as many as fit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub queues: Option<u16>,
    /// Entries of each virtqueue of a dumped region [default: what the region
    /// says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32768))]
    pub queue_size: Option<u16>,
    /// A dumped region is that of packed virtqueues
    #[arg(long)]
    pub packed: bool,
}

/// Options of `midflight serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Listen on a UNIX socket made at this path
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Use an inherited UNIX socket, listening or connected
    #[arg(long, value_name = "N", conflicts_with = "socket_path")]
    pub fd: Option<RawFd>,
    /// The file or block device to serve
    #[arg(long, value_name = "FILE")]
    pub blk_file: Option<PathBuf>,
    /// Most virtqueues a front-end may use, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub num_queues: u16,
    /// Largest virtqueue accepted, a power of two, 2 to 32768
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    pub queue_size_max: u16,
    /// Refuse everything that changes the disk
    #[arg(long)]
    pub read_only: bool,
    /// Serial number shown to the guest, at most 20 characters of ASCII
    #[arg(long, value_name = "S", default_value = "", value_parser = serial)]
    pub serial: Serial,
    /// Bypass the page cache of the host (O_DIRECT)
    #[arg(long)]
    pub direct: bool,
    /// Block size shown to the guest: 512, 1024, 2048 or 4096 [default: 512,
    /// or what --direct needs]
    #[arg(long, value_name = "N", value_parser = block_size)]
    pub logical_block_size: Option<u32>,
    /// Offer kicks and calls by message, for front-ends that cannot share event
    /// descriptors
    #[arg(long)]
    pub inband_notifications: bool,
    /// Hold each request for 0.6 to 1.4 times N microseconds: a slow disk for
    /// tests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000_000))]
    pub throttle_latency_us: Option<u64>,
    /// How long requests in flight may go on when a front-end that has agreed to
    /// suspending them stops a virtqueue; the rest is cancelled. Long enough
    /// for a healthy disk to finish, so that a pause is like a drain, and short
    /// against any downtime limit
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub suspend_grace_ms: u64,
    /// The numbers by which a front-end asks for a virtqueue to be suspended:
    /// skip-drain-45, skip-drain-44 or num-1. Off by default: as QEMU 11.1,
    /// whose every stop suspends
    #[arg(long, value_name = "NAME", value_parser = dialect)]
    pub skip_drain_dialect: Option<Dialect>,
    /// Take no part in an IOMMU of the virtual machine: a disk with
    /// iommu_platform=on is then refused by QEMU
    #[arg(long)]
    pub no_iommu: bool,
    /// Offer VIRTIO_F_IN_ORDER: requests complete in the order they were made,
    /// whatever order the disk finishes them in. A guest that accepts it, as
    /// Linux does from 6.18 on, waits for the slowest
    #[arg(long)]
    pub in_order: bool,
    /// Offer VIRTIO_F_RING_RESET: a guest may reset one queue while the others
    /// go on. Only for a front-end that passes such a reset on; QEMU does not
    /// for block devices, and the queue's memory would be used after the guest
    /// has freed it
    #[arg(long)]
    pub ring_reset: bool,
    /// Do not offer packed virtqueues
    #[arg(long)]
    pub no_packed: bool,
    /// How the host's disk is read and written
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub io_engine: Engine,
    /// Print what this program can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// What else the guest sees of the disk
    #[command(flatten)]
    pub disk: DiskArgs,
}

/// Values of `--io-engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// inline for files in memory, else io-uring, else threads
    Auto,
    /// io_uring or nothing
    IoUring,
    /// A pool of threads
    Threads,
    /// In the serving thread itself: right for files in memory, on a disk each
    /// request waits for the one before it
    Inline,
}

impl From<Engine> for EngineChoice {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::IoUring => Self::Uring,
            Engine::Threads => Self::Threads,
            Engine::Inline => Self::Inline,
        }
    }
}

/// A serial number, NUL padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(pub [u8; 20]);

impl core::fmt::Display for Serial {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for b in self.0.iter().take_while(|b| **b != 0) {
            write!(f, "{}", char::from(*b))?;
        }
        Ok(())
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() && (2..=32768).contains(&n) => Ok(n),
        _ => Err("expected a power of two from 2 to 32768".into()),
    }
}

fn dialect(text: &str) -> Result<Dialect, String> {
    let asking = |d: &Dialect| !d.plain_get_vring_base_may_suspend();
    Dialect::by_name(text).filter(asking).ok_or_else(|| {
        let names: Vec<_> = Dialect::ALL.iter().filter(|d| asking(d)).map(|d| d.name()).collect();
        format!("expected {}", names.join(", "))
    })
}

fn block_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if n.is_power_of_two() && (512..=4096).contains(&n) => Ok(n),
        _ => Err("expected 512, 1024, 2048 or 4096".into()),
    }
}

fn serial(text: &str) -> Result<Serial, String> {
    if !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err("expected printable ASCII characters".into());
    }
    let mut serial = [0; 20];
    match serial.get_mut(..text.len()) {
        Some(head) => head.copy_from_slice(text.as_bytes()),
        None => {
            return Err(format!("expected at most 20 characters, got {}", text.len()));
        }
    }
    Ok(Serial(serial))
}

/// Run the program with these arguments, the first being its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Whatever else is asked for is ignored, even if it makes no sense.
    // spec: vhost-user, "Backend program conventions"
    if args.iter().skip(1).any(|arg| arg == "--print-capabilities") {
        println!("{}", capabilities::json());
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help or version was asked for. A closed standard output is the
            // reader's choice.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return refuse(&Refusal(one_line(&error.to_string()))),
    };
    let result = match cli.command {
        Some(Sub::Serve(args)) => serve::serve(&args),
        Some(Sub::Inspect(args)) => inspect::inspect(&args),
        None => serve::serve(&cli.serve),
    };
    match result {
        Ok(code) => code,
        Err(refusal) => refuse(&refusal),
    }
}

fn refuse(refusal: &Refusal) -> ExitCode {
    say!("{refusal}");
    ExitCode::from(REFUSED)
}

/// The first paragraph of clap's message on one line; usage and tips go.
fn one_line(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or_default();
    let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(args: &[&str]) -> Result<ServeArgs, String> {
        let args = std::iter::once("midflight").chain(args.iter().copied());
        match Cli::try_parse_from(args) {
            Ok(Cli { command: Some(Sub::Serve(args)), .. }) => Ok(args),
            Ok(cli) => Ok(cli.serve),
            Err(e) => Err(one_line(&e.to_string())),
        }
    }

    #[test]
    fn cli_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cli_takes_the_same_options_with_and_without_serve() {
        let options = ["--fd=7", "--blk-file=/x", "--read-only"];
        let plain = parse(&options).unwrap();
        let mut with = vec!["serve"];
        with.extend(options);
        let serve = parse(&with).unwrap();
        assert_eq!(format!("{plain:?}"), format!("{serve:?}"));
        assert_eq!((plain.fd, plain.read_only), (Some(7), true));
    }

    #[test]
    fn cli_errors_are_one_line_and_name_the_option() {
        for (args, expected) in [
            (vec!["serve", "--bogus"], "--bogus"),
            (vec!["serve", "--num-queues", "0"], "--num-queues"),
            (vec!["serve", "--num-queues", "257"], "--num-queues"),
            (vec!["serve", "--queue-size-max", "100"], "power of two"),
            (vec!["serve", "--queue-size-max", "65536"], "power of two"),
            (vec!["serve", "--logical-block-size", "256"], "512, 1024"),
            (vec!["serve", "--serial", "123456789012345678901"], "20"),
            (vec!["serve", "--suspend-grace-ms", "60001"], "--suspend-grace-ms"),
            (
                vec!["serve", "--skip-drain-dialect", "qemu-11.1"],
                "expected skip-drain-45, skip-drain-44, num-1",
            ),
            (vec!["serve", "--fd", "3", "--socket-path", "/x"], "--fd"),
            (vec!["serve", "--io-engine", "magic"], "--io-engine"),
            (vec!["frobnicate"], "frobnicate"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
            assert!(!error.contains('\n') && !error.starts_with("error"));
        }
    }

    #[test]
    fn cli_serial_is_padded_and_prints_back() {
        let parsed = parse(&["--serial", "disk-1"]).unwrap().serial;
        assert_eq!(&parsed.0[..8], b"disk-1\0\0");
        assert_eq!(parsed.to_string(), "disk-1");
        assert_eq!(serial("12345678901234567890").unwrap().0[19], b'0');
    }
}
