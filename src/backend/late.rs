//! The deliberate mistake [`Bug::RegionAfterReply`](crate::bugs::Bug): steps C5
//! and C6 of a batch that is published while its vring stops are put off until
//! the stop was answered. Without the feature `bugs` there is nothing here.

#[cfg(not(feature = "bugs"))]
pub(super) use off::Late;
#[cfg(feature = "bugs")]
pub(super) use on::Late;

#[cfg(not(feature = "bugs"))]
mod off {
    use crate::backend::vring::Run;
    use vm_memory::GuestMemory;

    #[derive(Debug, Default)]
    pub struct Late {}

    impl Late {
        pub fn put_off(&mut self, _vring: u16, _run: &Run) -> bool {
            false
        }

        pub fn catch_up<M: GuestMemory>(&mut self, _mem: Option<&M>) {}

        pub fn is_due(&self, _runs: impl Fn(u16) -> bool) -> bool {
            false
        }
    }
}

#[cfg(feature = "bugs")]
mod on {
    use crate::backend::vring::Run;
    use crate::bugs::{self, Bug};
    use crate::inflight::Region;
    use vm_memory::GuestMemory;

    #[derive(Debug, Default)]
    pub struct Late(Option<(u16, Region, Vec<u16>, u16)>);

    impl Late {
        /// True if the batch that was just published is not to be closed now.
        pub fn put_off(&mut self, vring: u16, run: &Run) -> bool {
            let Some(region) = run.region.as_ref() else { return false };
            if !bugs::on(Bug::RegionAfterReply) || !run.stopping || self.0.is_some() {
                return false;
            }
            let heads = run.batch.iter().map(|used| used.head).collect();
            self.0 = Some((vring, region.clone(), heads, run.ring.used()));
            true
        }

        /// Do what was put off.
        pub fn catch_up<M: GuestMemory>(&mut self, mem: Option<&M>) {
            let (Some((_, mut region, heads, used)), Some(mem)) = (self.0.take(), mem) else {
                return;
            };
            for head in heads {
                let _ = region.retire(mem, head);
            }
            let _ = region.close(mem, used);
        }

        /// True if the vring has stopped.
        pub fn is_due(&self, runs: impl Fn(u16) -> bool) -> bool {
            self.0.as_ref().is_some_and(|(vring, ..)| !runs(*vring))
        }
    }
}
