//! Command line of the simulator.
use midflight_sim::memory::Arena;
use midflight_sim::{run, trace, world::Options};
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let mut arena = Arena::new();
    if a.len() == 1 {
        let o = run::run(&mut arena, a[0], &Options { trace: true, ..Default::default() });
        println!("{}", o.profile);
        print!("{}", trace::render(o.trace.events()));
        println!("{:?} {:016x} {:?}", o.verdict, o.hash, o.stats);
    } else {
        let mut bad = 0;
        let mut s = (0, 0, 0, 0);
        for seed in a[0]..a[1] {
            let o = run::run(&mut arena, seed, &Options::default());
            s = (s.0 + o.stats.events, s.1 + o.stats.kills, s.2 + o.stats.resubmitted, s.3 + o.stats.requests);
            if let Err(v) = o.verdict {
                bad += 1;
                if bad < 20 {
                    println!("{seed}: {v}");
                }
            }
        }
        println!("bad {bad} {s:?}");
    }
}
