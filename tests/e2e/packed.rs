//! The scenarios of split rings that rings have a say in, with packed ones.

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::daemon::DiskOptions;
use crate::{crash, migrate, migrate_file, steady};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "packed_boot_and_verified_io_with_one_queue", run: one_queue },
        Scenario { name: "packed_large_requests_of_many_segments", run: large_requests },
        Scenario { name: "packed_driver_unbound_and_bound", run: rebind },
        Scenario { name: "packed_machine_reset_during_io", run: reset_during_io },
        Scenario { name: "packed_verified_io_with_four_queues", run: four_queues },
        Scenario { name: "packed_stop_and_cont_on_a_slow_disk", run: stop_cont },
        Scenario { name: "packed_kill_during_io_next_daemon_finishes", run: kill },
        Scenario { name: "packed_kill_during_io_with_four_queues", run: kill_four_queues },
        Scenario { name: "packed_chains_without_indirect_tables_io", run: direct_chains },
        Scenario { name: "packed_chains_without_indirect_tables_kill", run: kill_direct_chains },
        Scenario { name: "packed_without_event_idx", run: by_flags },
        Scenario { name: "packed_kill_again_before_recovery_is_over", run: kill_twice },
        Scenario { name: "packed_kill_while_stopped_then_cont", run: kill_while_stopped },
        Scenario { name: "packed_kill_storm_on_a_fast_disk", run: storm },
        Scenario { name: "packed_migration_there_and_back_ten_times", run: there_and_back },
        Scenario { name: "packed_migration_to_a_file_and_restored", run: restore },
        Scenario { name: "packed_migration_of_four_queues_to_larger_ones", run: move_four_queues },
    ]
}

/// QEMU and the guest have agreed on what a scenario is about.
// spec: virtio 1.2, "Reserved Feature Bits"
fn check(bench: &mut Bench, spec: &Spec, on: &[u32], off: &[u32]) -> Result<(), String> {
    let features = bench.rig(spec)?.vm.guest.ask("info disk=vda")?.number("features")?;
    let has = |bit: &u32| features >> bit & 1 == 1;
    if on.iter().all(has) && !off.iter().any(has) {
        return Ok(());
    }
    Err(format!("features {features:#x}, expected bits {on:?} and not {off:?}"))
}

const INDIRECT_DESC: u32 = 28;
const EVENT_IDX: u32 = 29;
const RING_PACKED: u32 = 34;

fn check_packed(bench: &mut Bench, spec: &Spec) -> Result<(), String> {
    check(bench, spec, &[INDIRECT_DESC, EVENT_IDX, RING_PACKED], &[])
}

fn one_queue(bench: &mut Bench) -> Result<Figures, String> {
    let spec = Spec::plain().packed();
    check_packed(bench, &spec)?;
    steady::one_queue_on(bench, &spec)
}

fn large_requests(bench: &mut Bench) -> Result<Figures, String> {
    steady::large_requests_on(bench, &Spec::plain().packed())
}

fn rebind(bench: &mut Bench) -> Result<Figures, String> {
    steady::rebind_on(bench, &Spec::plain().packed())
}

fn reset_during_io(bench: &mut Bench) -> Result<Figures, String> {
    steady::reset_during_io_on(bench, &Spec::plain().packed())
}

fn four_queues(bench: &mut Bench) -> Result<Figures, String> {
    let spec = steady::with_four_queues().packed();
    check_packed(bench, &spec)?;
    steady::four_queues_on(bench, &spec)
}

fn stop_cont(bench: &mut Bench) -> Result<Figures, String> {
    let plan = crate::run::Plan { seed: 40, ..crate::run::Plan::slow() };
    steady::stop_cont_on(bench, &Spec::slow().packed(), &plan, 100)
}

fn kill(bench: &mut Bench) -> Result<Figures, String> {
    crash::kill_on(bench, &Spec::slow().packed())
}

fn kill_four_queues(bench: &mut Bench) -> Result<Figures, String> {
    let slow = Spec::slow();
    let disk = DiskOptions { queues: 4, ..slow.disk.clone() };
    crash::kill_on(bench, &Spec { cpus: 4, disk, ..slow }.packed())
}

/// Every buffer is a descriptor of the ring: chains of several that go over
/// its end, and used descriptors over what others have left.
fn direct(spec: Spec) -> Spec {
    Spec { device: ",indirect_desc=off", ..spec.packed() }
}

fn direct_chains(bench: &mut Bench) -> Result<Figures, String> {
    let spec = direct(Spec::plain());
    check(bench, &spec, &[RING_PACKED], &[INDIRECT_DESC])?;
    steady::large_requests_on(bench, &spec)
}

fn kill_direct_chains(bench: &mut Bench) -> Result<Figures, String> {
    let spec = direct(Spec::slow());
    check(bench, &spec, &[RING_PACKED], &[INDIRECT_DESC])?;
    crash::kill_on(bench, &spec)
}

fn by_flags(bench: &mut Bench) -> Result<Figures, String> {
    let spec = Spec { device: ",event_idx=off", ..Spec::plain().packed() };
    check(bench, &spec, &[RING_PACKED], &[EVENT_IDX])?;
    steady::one_queue_on(bench, &spec)
}

fn kill_twice(bench: &mut Bench) -> Result<Figures, String> {
    crash::kill_twice_on(bench, &Spec::slow().packed())
}

fn kill_while_stopped(bench: &mut Bench) -> Result<Figures, String> {
    crash::kill_while_stopped_on(bench, &Spec::slow().packed())
}

fn storm(bench: &mut Bench) -> Result<Figures, String> {
    crash::storm_on(bench, 62, &crash::fast(false).packed())
}

fn there_and_back(bench: &mut Bench) -> Result<Figures, String> {
    let spec = migrate::moving().packed();
    check_packed(bench, &spec)?;
    migrate::there_and_back_on(bench, &spec)
}

fn restore(bench: &mut Bench) -> Result<Figures, String> {
    migrate_file::restore_on(bench, &migrate::moving().packed())
}

fn move_four_queues(bench: &mut Bench) -> Result<Figures, String> {
    migrate::four_queues_on(bench, migrate::moving().packed())
}
