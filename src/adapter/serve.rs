//! `midflight serve`: from options to a running loop.

use super::cli::ServeArgs;
use super::disk::{Disk, ZoneFile};
use super::error::Refusal;
use super::event_loop::EventLoop;
use super::image::{CancelPromise, Image, ImageOptions};
use super::listener::{self, Inherited, Listener};
use super::lock::StoreLock;
use super::sigbus;
use super::signals::Signals;
use super::size::SizeWatch;
use super::userfault;
use crate::backend::{Backend, SuspendPolicy};
use crate::blk::DeviceConfig;
use crate::time::Duration;
use crate::wire::Dialect;
use std::process::ExitCode;
use std::sync::Arc;

/// Serve until the end. What the operator has to change comes back as an
/// error; everything later is a line and an exit code.
pub fn serve(args: &ServeArgs) -> Result<ExitCode, Refusal> {
    let missing = |what: &str| Refusal(format!("{what} is required, try --help"));
    let path = args.blk_file.as_ref().ok_or_else(|| missing("--blk-file"))?;
    // What can be said at once is said before anything is waited for.
    let inherited = match (&args.socket_path, args.fd) {
        (Some(socket), _) => {
            listener::probe(socket)?;
            None
        }
        (None, Some(fd)) => Some(listener::inherit(fd)?),
        (None, None) => return Err(missing("--socket-path or --fd")),
    };
    let options = ImageOptions {
        read_only: args.read_only,
        direct: args.direct,
        logical_block_size: args.logical_block_size,
    };
    let mut image = Image::open(path, options)?;
    if args.disk.secure_erase {
        if args.read_only {
            return Err(Refusal("--secure-erase: the disk is only read".into()));
        }
        image.prepare_erase().map_err(|why| Refusal(format!("--secure-erase: {why}")))?;
    }
    let logical = image.block_size();
    let limits = args.disk.limits(&image);
    let zones = args.disk.zones(path, logical);
    let config = DeviceConfig {
        capacity: image.size(),
        logical_block_size: image.block_size(),
        num_queues: args.num_queues,
        queue_size_max: args.queue_size_max,
        read_only: args.read_only,
        serial: args.serial.0,
        discard: image.can_discard(),
        write_zeroes: !args.read_only,
        secure_erase: args.disk.secure_erase,
        limits: limits.ranges(logical),
        topology: Some(limits.topology(logical)),
        lifetime: args.disk.lifetime(&image)?,
        zoned: zones.as_ref().map(|(zoned, _)| *zoned),
        access_platform: !args.no_iommu,
        inband: args.inband_notifications,
        in_order: args.in_order,
        ring_reset: args.ring_reset,
        packed: !args.no_packed,
    };
    config.validate().map_err(|e| Refusal(e.to_string()))?;
    let zones = match zones {
        None => None,
        Some((zoned, at)) => {
            let file = ZoneFile::open(&at, zoned, &image)?;
            let companion = file.fd().try_clone_to_owned();
            image.set_companion(companion.map_err(|e| Refusal(format!("cannot start: {e}")))?);
            Some(file)
        }
    };
    let image = Arc::new(image);
    let backend =
        match suspend_policy(image.promise(), args.suspend_grace_ms, args.skip_drain_dialect)? {
            Some(policy) => Backend::with_suspend(config, policy),
            None => Backend::new(config),
        };
    let backend = backend.map_err(|e| Refusal(e.to_string()))?;
    // QEMU accepts whatever is offered, and then relies on it.
    let backend = if userfault::is_available() { backend.offering_postcopy() } else { backend };
    let store = StoreLock::new(Arc::clone(&image), path.display().to_string(), args.read_only);
    let (disk, line) =
        Disk::new(Arc::clone(&image), args.io_engine.into(), args.throttle_latency_us, zones)
            .map_err(|e| Refusal(format!("cannot set up disk I/O: {e}")))?;
    if let Some(line) = line {
        say!("{line}");
    }
    let system = |e: std::io::Error| Refusal(format!("cannot start: {e}"));
    sigbus::install().map_err(system)?;
    let signals = Signals::install().map_err(system)?;
    let engine = disk.name();
    let size = SizeWatch::new(Arc::clone(&image));
    let event_loop = EventLoop::new(backend, disk, store, size, signals).map_err(system)?;
    let ready = |on: String| {
        say!("{on}, serving {} ({} bytes, {engine})", path.display(), image.size());
    };
    let ended = match (inherited, &args.socket_path) {
        (Some(Inherited::Connected(client)), _) => {
            ready(format!("connected on descriptor {}", args.fd.unwrap_or(-1)));
            event_loop.run_client(client)
        }
        (Some(Inherited::Listening(listener)), _) => {
            ready(format!("listening on descriptor {}", args.fd.unwrap_or(-1)));
            event_loop.run_listener(listener)
        }
        (None, Some(socket)) => {
            let listener = Listener::bind(socket)?;
            ready(format!("listening on {}", socket.display()));
            event_loop.run_listener(listener)
        }
        (None, None) => return Err(missing("--socket-path or --fd")),
    };
    Ok(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("fatal: {error}");
            ExitCode::FAILURE
        }
    })
}

/// How vrings are suspended; `None` if this store does not allow it.
fn suspend_policy(
    promise: CancelPromise,
    grace_ms: u64,
    dialect: Option<Dialect>,
) -> Result<Option<SuspendPolicy>, Refusal> {
    match promise {
        CancelPromise::CancelAndWait => Ok(Some(SuspendPolicy {
            grace: Duration::from_millis(grace_ms),
            dialect: dialect.unwrap_or_default(),
        })),
        CancelPromise::None(why) => {
            let line = format!("cannot suspend requests in flight: {why}, try --direct");
            match dialect {
                Some(_) => Err(Refusal(format!("--skip-drain-dialect: {line}"))),
                None => {
                    say!("{line}; every stop waits for them");
                    Ok(None)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serve_suspends_nothing_on_a_store_that_promises_nothing() {
        let wait = CancelPromise::CancelAndWait;
        let none = CancelPromise::None("it is far away");
        let grace = Duration::from_millis(7);
        for dialect in Dialect::ALL {
            let policy = Some(SuspendPolicy { grace, dialect });
            assert_eq!(suspend_policy(wait, 7, Some(dialect)), Ok(policy));
            assert_eq!(
                suspend_policy(none, 7, Some(dialect)).unwrap_err().0,
                "--skip-drain-dialect: cannot suspend requests in flight: it is far away, try --direct"
            );
        }
        let dialect = Dialect::QEMU_11_1;
        assert_eq!(suspend_policy(wait, 7, None), Ok(Some(SuspendPolicy { grace, dialect })));
        assert_eq!(suspend_policy(none, 7, None), Ok(None));
    }
}
