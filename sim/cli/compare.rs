//! Downtime by policy, as a table.

use midflight_sim::compare::{Downtime, MIGRATIONS, downtime};
use midflight_sim::memory::Arena;
use midflight_sim::topology::Policy;

const SEED: u64 = 1;

pub fn table(policies: &[Policy], latencies: &[u64], depths: &[u64]) -> bool {
    let mut arena = Arena::new();
    let mut kept = true;
    println!(
        "downtime of a guest in virtual milliseconds, {MIGRATIONS} migrations each, mean (longest), and requests in flight at the hand-over"
    );
    println!(
        "suspend: 1 ms of grace, then cancels that take up to 0.5 ms; link of 10 Gbit/s, 0.1 ms"
    );
    print!("{:>10}  {:>5}", "disk", "depth");
    for policy in policies {
        print!("  {:>22}  {:>9}", policy.name(), "in flight");
    }
    println!();
    for latency in latencies {
        for depth in depths {
            print!("{latency:>7} us  {depth:>5}");
            for policy in policies {
                match downtime(&mut arena, SEED, *policy, *latency, *depth) {
                    Ok(Downtime { mean, max, carried_tenths }) => print!(
                        "  {:>22}  {:>9}",
                        format!("{} ({})", ms(mean), ms(max)),
                        format!("{}.{}", carried_tenths / 10, carried_tenths % 10)
                    ),
                    Err(violation) => {
                        kept = false;
                        print!("  {violation}");
                    }
                }
            }
            println!();
        }
    }
    kept
}

fn ms(nanos: u64) -> String {
    let hundredths = nanos.div_ceil(10_000);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
