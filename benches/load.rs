//! A load generator for any vhost-user-blk back-end: 4 KiB random reads over
//! one vring at a fixed depth, by midflight's own front-end and guest driver.
//!
//! It sleeps until it is called, as a guest does, and prints one line of
//! `name=value` pairs: what it saw, and what the back-end's process paid for it.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use clap::Parser;
use midflight::adapter::client::{Client, ClientConfig, ClientError};
use midflight::driver::{BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::frontend::FrontendConfig;
use midflight::time;
use midflight::wire::features::{protocol, virtio};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vm_memory::{Bytes as _, GuestAddress};

const BLOCK: u64 = 4096;
const RING: u16 = 256;
/// Guest memory of one request: header, status and table in the first page,
/// data in the second.
const SLOT: u64 = 2 * BLOCK;

#[derive(Parser)]
#[command(about = "Load for a vhost-user-blk back-end: 4 KiB random reads over one vring")]
struct Args {
    /// Socket of the back-end
    #[arg(long, required_unless_present = "fill")]
    socket: Option<PathBuf>,
    /// Requests in flight at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=u64::from(RING)))]
    depth: u64,
    /// Milliseconds that are measured
    #[arg(long, default_value_t = 1000)]
    time_ms: u64,
    /// Milliseconds before the measurement starts
    #[arg(long, default_value_t = 200)]
    warm_ms: u64,
    /// Stop after this many requests even if time is left
    #[arg(long)]
    count: Option<u64>,
    /// Process id of the back-end, to account its CPU time, all threads included
    #[arg(long)]
    pid: Option<i32>,
    /// Check that each block read holds its own number, as --fill leaves it
    #[arg(long)]
    verify: bool,
    /// Do without the inflight region even if the back-end offers one
    #[arg(long)]
    no_inflight: bool,
    /// Do nothing but write an image of numbered blocks here
    #[arg(long, requires = "size_mib")]
    fill: Option<PathBuf>,
    /// Size of that image
    #[arg(long)]
    size_mib: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (&args.fill, args.size_mib, &args.socket) {
        (Some(path), Some(size), _) => fill(path, size).map_err(|e| e.to_string()),
        (_, _, Some(socket)) => load(&args, socket),
        _ => Err("expected --socket or --fill".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fill(path: &Path, size_mib: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut block = [0x5a; BLOCK as usize];
    for number in 0..size_mib * (1 << 20) / BLOCK {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    // Clean pages, so that nobody writes back while something is measured.
    file.into_inner()?.sync_all()
}

fn config(args: &Args, socket: &Path) -> ClientConfig {
    let inflight = if args.no_inflight { 0 } else { protocol::INFLIGHT_SHMFD };
    ClientConfig {
        socket: socket.to_path_buf(),
        frontend: FrontendConfig {
            virtio_features: virtio::VERSION_1
                | virtio::EVENT_IDX
                | virtio::INDIRECT_DESC
                | virtio::BLK_SEG_MAX,
            protocol_features: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | inflight,
            queue_size: RING,
            config_len: 24,
            ..FrontendConfig::new(1)
        },
        ring_size: RING,
        memory_size: 16 << 20,
        patience: time::Duration::from_secs(10),
    }
}

/// What was measured, in requests and nanoseconds.
struct Measured {
    requests: u64,
    wakeups: u64,
    elapsed: Duration,
    backend: Option<Duration>,
    own: Duration,
    latencies: Latencies,
}

fn load(args: &Args, socket: &Path) -> Result<(), String> {
    let said = |error: ClientError| error.to_string();
    let mut client = Client::connect(config(args, socket)).map_err(said)?;
    client.start().map_err(said)?;
    let capacity = client.read_config(0, 8).map_err(said)?;
    let sectors = capacity.try_into().map(u64::from_le_bytes);
    let blocks = sectors.map_err(|_| "the back-end has no capacity")? * 512 / BLOCK;
    if blocks == 0 {
        return Err("expected a disk of at least 4096 bytes".into());
    }
    let mut guest = Guest {
        area: client.data_area().start.next_multiple_of(BLOCK),
        client,
        blocks,
        random: 0x9e37_79b9_7f4a_7c15,
        numbers: vec![0; args.depth as usize],
        sent: vec![Instant::now(); args.depth as usize],
        verify: args.verify,
    };
    let measured = guest.run(args)?;
    guest.client.stop().map_err(said)?;
    report(args, &measured);
    Ok(())
}

fn report(args: &Args, measured: &Measured) {
    let each = |time: Duration| time.as_nanos() as f64 / measured.requests.max(1) as f64;
    let iops = measured.requests as f64 / measured.elapsed.as_secs_f64();
    let [p50, p99] = [50, 99].map(|p| measured.latencies.percentile(p) as f64 / 1000.0);
    let per_wakeup = measured.requests as f64 / measured.wakeups.max(1) as f64;
    print!("depth={} requests={} iops={iops:.0}", args.depth, measured.requests);
    print!(" p50_us={p50:.1} p99_us={p99:.1} per_wakeup={per_wakeup:.1}");
    if let Some(backend) = measured.backend {
        print!(" backend_ns={:.0}", each(backend));
    }
    println!(" own_ns={:.0}", each(measured.own));
}

struct Guest {
    client: Client,
    area: u64,
    blocks: u64,
    random: u64,
    /// Block number that each slot reads.
    numbers: Vec<u64>,
    /// When each slot's request was put into the ring.
    sent: Vec<Instant>,
    verify: bool,
}

impl Guest {
    /// Keep `depth` requests in flight until time or count is up, then let
    /// those finish.
    fn run(&mut self, args: &Args) -> Result<Measured, String> {
        let warm = Instant::now();
        for slot in 0..args.depth {
            self.submit(slot, warm)?;
        }
        self.client.kick(0).map_err(|e| e.to_string())?;
        self.turn_until(args.depth, warm + Duration::from_millis(args.warm_ms), None)?;

        let cpu = || args.pid.map(cpu_time).transpose();
        let (start, own, backend) = (Instant::now(), cpu_time(0)?, cpu()?);
        let until = start + Duration::from_millis(args.time_ms);
        let (requests, wakeups, latencies) = self.turn_until(args.depth, until, args.count)?;
        let elapsed = start.elapsed();
        let backend = cpu()?.zip(backend).map(|(after, before)| after - before);
        let own = cpu_time(0)? - own;
        for _ in 0..args.depth {
            self.wait()?;
        }
        Ok(Measured { requests, wakeups, elapsed, backend, own, latencies })
    }

    /// Replace what is completed by new requests; returns the number of
    /// requests and of times that there was something to reap.
    fn turn_until(
        &mut self,
        depth: u64,
        until: Instant,
        count: Option<u64>,
    ) -> Result<(u64, u64, Latencies), String> {
        let mut latencies = Latencies::new();
        let (mut requests, mut wakeups) = (0, 0);
        loop {
            let mut slot = self.wait()?;
            let now = Instant::now();
            // All of a batch is taken before anything new is published, at most
            // as many as were there.
            for _ in 0..depth {
                latencies.add(now - self.sent[slot as usize]);
                requests += 1;
                self.submit(slot, now)?;
                match self.reap()? {
                    Some(next) => slot = next,
                    None => break,
                }
            }
            self.client.kick(0).map_err(|e| e.to_string())?;
            wakeups += 1;
            if now >= until || count.is_some_and(|count| requests >= count) {
                return Ok((requests, wakeups, latencies));
            }
        }
    }

    fn submit(&mut self, slot: u64, now: Instant) -> Result<(), String> {
        // xorshift64: the same blocks in every run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let number = self.random % self.blocks;
        let at = self.area + slot * SLOT;
        let data = [Span { addr: at + BLOCK, len: BLOCK as u32 }];
        // In an indirect table, as Linux sends it.
        let buffers =
            RequestBuffers { header: at, data: &data, status: at + 16, table: Some(at + 32) };
        let request = BlkRequest { op: BlkOp::In { sector: number * (BLOCK / 512) }, token: slot };
        self.numbers[slot as usize] = number;
        self.sent[slot as usize] = now;
        let put = self.client.submit(0, &request, &buffers, &Framing::INDIRECT);
        put.map(|_| ()).map_err(|e| e.to_string())
    }

    fn wait(&mut self) -> Result<u64, String> {
        let done = self.client.wait_done(0).map_err(|e| e.to_string())?;
        self.check(done.token, done.status)
    }

    fn reap(&mut self) -> Result<Option<u64>, String> {
        let done = self.client.reap(0).map_err(|e| e.to_string())?;
        done.map(|done| self.check(done.token, done.status)).transpose()
    }

    fn check(&self, slot: u64, status: BlkStatus) -> Result<u64, String> {
        let number = self.numbers[slot as usize];
        if status != BlkStatus::Ok {
            return Err(format!("block {number}: status {}", status.code()));
        }
        if self.verify {
            let at = GuestAddress(self.area + slot * SLOT + BLOCK);
            let got: u64 = self.client.memory().read_obj(at).map_err(|e| e.to_string())?;
            if u64::from_le(got) != number {
                return Err(format!("block {number}: got the bytes of block {got}"));
            }
        }
        Ok(slot)
    }
}

/// CPU time of a process, of all its threads, those that have ended and those
/// that the kernel runs for it included. 0 is this process.
fn cpu_time(pid: i32) -> Result<Duration, String> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls store to the local variable they are given.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(format!("cannot read the CPU clock of process {pid}"));
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A histogram with 16 steps to each doubling.
struct Latencies(Vec<u64>);

impl Latencies {
    fn new() -> Self {
        Self(vec![0; 16 * 64])
    }

    fn add(&mut self, latency: Duration) {
        let ns = (latency.as_nanos() as u64).max(16);
        let exponent = ns.ilog2();
        let step = (ns >> (exponent - 4)) & 15;
        self.0[(exponent * 16) as usize + step as usize] += 1;
    }

    /// Upper end, in nanoseconds, of the step that holds this percentile.
    fn percentile(&self, percent: u64) -> u64 {
        let total: u64 = self.0.iter().sum();
        let mut left = (total * percent).div_ceil(100);
        for (index, count) in (0u64..).zip(&self.0) {
            if *count >= left {
                let (exponent, step) = (index / 16, index % 16);
                return (17 + step) << exponent.saturating_sub(4);
            }
            left -= count;
        }
        0
    }
}
