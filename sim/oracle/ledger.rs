//! Each request completes exactly once, with the right status, and the disk is
//! asked for nothing else.

use super::rings::Desc;
use super::{RingView, Violation};
use crate::disk::faults::Try;
use crate::disk::{Job, SECTOR};
use crate::memory::Mem;
use crate::trace::Verb;
use vm_memory::GuestAddress;

/// What every simulated device answers to GET_ID.
pub const SERIAL: [u8; 20] = *b"midflight-sim disk\0\0";

/// What the document promises for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// What the disk says: status 0, or 1 if it failed.
    Ok,
    /// Status 1 and no disk involved.
    IoErr,
    /// Status 2 and no disk involved.
    Unsupp,
}

/// A request of the guest.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Number in this run.
    pub request: u64,
    /// Vring.
    pub vring: u16,
    /// Head of its chain, or its buffer id.
    pub head: u16,
    /// What is wanted.
    pub verb: Verb,
    /// First sector.
    pub sector: u64,
    /// Sectors, 0 where there are none.
    pub sectors: u64,
    /// What has to come back.
    pub expect: Expect,
    /// Address and length of each piece of data, in order.
    pub data: Vec<(u64, u32)>,
    /// Address of the status byte.
    pub status: u64,
    /// Tick of publication.
    pub published: Option<u64>,
    /// Place in the available ring, counted from the start of the run.
    pub order: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    ask: Ask,
    /// How far it moves the places of the ring.
    steps: u16,
    /// Its descriptors, as they were in a packed ring.
    descs: Vec<Desc>,
    used_len: Option<u32>,
    /// What the disk has answered to the last try.
    answer: Option<bool>,
    /// A fault was injected into the last try: it fails.
    fails: bool,
    /// A fault was injected into the last try: it does nothing.
    lies: bool,
    /// Life and connection of the back-end that asked the disk last.
    issued_in: Option<(u32, u32)>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Status 0.
    pub ok: bool,
}

#[derive(Clone, Debug)]
struct Queue {
    ring: RingView,
    /// By head: the request that holds it.
    holds: Vec<Option<u64>>,
    /// Requests by place in the available ring.
    order: Vec<u64>,
    used: u64,
    /// Everything before this place in the available ring is used.
    oldest: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    entries: Vec<Entry>,
    queues: Vec<Queue>,
    completed: u64,
}

/// Pieces of memory, address and bytes, with neighbours made one.
pub(super) fn joined(pieces: &[(u64, u32)]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut pieces = pieces.iter().map(|(addr, len)| (*addr, u64::from(*len))).peekable();
    std::iter::from_fn(move || {
        let (first, mut size) = pieces.next()?;
        while let Some((_, more)) = pieces.next_if(|(addr, _)| first + size == *addr) {
            size += more;
        }
        Some((first, size))
    })
}

fn broken(message: String) -> Violation {
    Violation::new("ledger", message)
}

impl Ledger {
    pub(super) fn new(rings: Vec<RingView>) -> Self {
        let queue = |ring: RingView| Queue {
            holds: vec![None; usize::from(ring.size())],
            ring,
            order: Vec::new(),
            used: 0,
            oldest: 0,
        };
        Self { entries: Vec::new(), queues: rings.into_iter().map(queue).collect(), completed: 0 }
    }

    /// Number of vrings.
    pub fn vrings(&self) -> u16 {
        self.queues.len() as u16
    }

    /// A vring as the oracle reads it.
    pub fn ring(&self, vring: u16) -> &RingView {
        &self.queues[usize::from(vring)].ring
    }

    /// Requests that were made available in a vring so far.
    pub fn available_count(&self, vring: u16) -> u64 {
        self.queues[usize::from(vring)].order.len() as u64
    }

    /// Requests offered so far.
    pub fn offered_count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Requests completed so far.
    pub fn completed_count(&self) -> u64 {
        self.completed
    }

    /// A request by number.
    pub fn ask(&self, request: u64) -> &Ask {
        &self.entries[request as usize].ask
    }

    /// The request that holds a head of a vring, if it is out.
    pub fn holder(&self, vring: u16, head: u16) -> Option<u64> {
        *self.queues.get(usize::from(vring))?.holds.get(usize::from(head))?
    }

    /// How far the chain that holds a head moves the places of its ring.
    pub fn steps(&self, vring: u16, head: u16) -> Option<u16> {
        self.holder(vring, head).map(|request| self.entries[request as usize].steps)
    }

    /// The descriptors of a request, as they were in a packed ring.
    pub(super) fn descs(&self, request: u64) -> &[Desc] {
        &self.entries[request as usize].descs
    }

    /// Requests that were published and are not used, in available order.
    pub fn outstanding(&self, vring: u16) -> impl Iterator<Item = &Ask> + '_ {
        let queue = &self.queues[usize::from(vring)];
        queue.order[queue.oldest as usize..]
            .iter()
            .map(|id| &self.entries[*id as usize])
            .filter(|e| e.used_len.is_none())
            .map(|e| &e.ask)
    }

    /// Requests made available so far.
    pub fn published_count(&self, vring: u16) -> u64 {
        self.queues[usize::from(vring)].order.len() as u64
    }

    /// Used elements so far.
    pub fn used_count(&self, vring: u16) -> u64 {
        self.queues[usize::from(vring)].used
    }

    /// Life of the back-end that asked the disk for this request last.
    pub fn issued_in(&self, request: u64) -> Option<u32> {
        self.entries[request as usize].issued_in.map(|(life, _)| life)
    }

    pub(super) fn offered(&mut self, ask: Ask) {
        assert_eq!(ask.request, self.entries.len() as u64, "requests are numbered in order");
        self.entries.push(Entry {
            ask,
            steps: 1,
            descs: Vec::new(),
            used_len: None,
            answer: None,
            fails: false,
            lies: false,
            issued_in: None,
        });
    }

    /// The next request that became visible in a vring.
    pub(super) fn scan_avail(
        &mut self,
        mem: &Mem,
        vring: u16,
        tick: u64,
    ) -> Result<Option<u64>, Violation> {
        let queue = &mut self.queues[usize::from(vring)];
        let Some(offer) = queue.ring.next_avail(mem) else { return Ok(None) };
        let head = offer.name;
        // The newest request with this head that nobody has published.
        let entry = self
            .entries
            .iter_mut()
            .rev()
            .find(|e| e.ask.vring == vring && e.ask.head == head && e.ask.published.is_none())
            .ok_or_else(|| {
                Violation::new("guest", format!("vring {vring}: head {head} is no request"))
            })?;
        entry.ask.published = Some(tick);
        (entry.steps, entry.descs) = (offer.steps, offer.descs);
        entry.ask.order = queue.order.len() as u64;
        queue.order.push(entry.ask.request);
        // A buffer id may be any number.
        if queue.holds.len() <= usize::from(head) {
            queue.holds.resize(usize::from(head) + 1, None);
        }
        queue.holds[usize::from(head)] = Some(entry.ask.request);
        Ok(Some(entry.ask.request))
    }

    /// The next request with a new used element in this vring.
    pub(super) fn scan_used(&mut self, mem: &Mem, vring: u16) -> Result<Option<u64>, Violation> {
        let queue = &mut self.queues[usize::from(vring)];
        let Some((id, len)) = queue.ring.peek_used(mem, vring)? else { return Ok(None) };
        let place = queue.ring.used_place();
        let holder = usize::try_from(id).ok().and_then(|id| queue.holds.get_mut(id));
        let Some(request) = holder.and_then(Option::take) else {
            let last = self.entries.iter().rev().find(|e| {
                e.ask.vring == vring && u32::from(e.ask.head) == id && e.used_len.is_some()
            });
            return Err(broken(match last {
                Some(e) => format!(
                    "request {} completed twice: used entry {} of vring {vring} names head {id} again",
                    e.ask.request,
                    queue.ring.name(place)
                ),
                None => format!(
                    "used entry {} of vring {vring} names head {id}, which is no request",
                    queue.ring.name(place)
                ),
            }));
        };
        queue.ring.pass_used(self.entries[request as usize].steps);
        queue.used += 1;
        self.completed += 1;
        self.entries[request as usize].used_len = Some(len);
        while let Some(oldest) = queue.order.get(queue.oldest as usize)
            && self.entries[*oldest as usize].used_len.is_some()
        {
            queue.oldest += 1;
        }
        Ok(Some(request))
    }

    /// Judge status and length of a request that was just used.
    pub(super) fn verdict(&self, mem: &Mem, request: u64) -> Result<Done, Violation> {
        let Entry { ask, used_len, answer, .. } = &self.entries[request as usize];
        let len = u64::from(used_len.unwrap_or(0));
        let mut status = [0];
        mem.read_slice(&mut status, GuestAddress(ask.status)).expect("status lies in guest memory");
        let status = status[0];
        let right = match ask.expect {
            // The device itself knows its name.
            Expect::Ok if ask.verb == Verb::GetId => status == 0,
            Expect::Ok => status <= 1 && *answer == Some(status == 0),
            Expect::IoErr => status == 1,
            Expect::Unsupp => status == 2,
        };
        if !right {
            return Err(broken(format!(
                "request {request} ({} {} sectors @{}) has status {status}, expected {:?}{}",
                ask.verb.name(),
                ask.sectors,
                ask.sector,
                ask.expect,
                match (ask.expect, answer) {
                    (Expect::Ok, None) => ", and the disk has not answered",
                    (Expect::Ok, Some(true)) => ", and the disk has done it",
                    (Expect::Ok, Some(false)) => ", and the disk has failed it",
                    (Expect::IoErr | Expect::Unsupp, _) => "",
                }
            )));
        }
        // The status byte is always written; data only by what succeeded.
        let data: u64 = match ask.verb {
            Verb::Read | Verb::GetId => ask.data.iter().map(|(_, len)| u64::from(*len)).sum(),
            _ => 0,
        };
        let (min, max) = match (ask.expect, status) {
            (Expect::Ok, 0) => (data + 1, data + 1),
            _ => (1, data + 1),
        };
        if len < min || len > max {
            return Err(broken(format!(
                "request {request} ({}) reports {len} bytes written, expected {min} to {max}",
                ask.verb.name()
            )));
        }
        if ask.verb == Verb::GetId {
            let mut id = Vec::new();
            for (addr, len) in &ask.data {
                let at = id.len();
                id.resize(at + *len as usize, 0);
                mem.read_slice(&mut id[at..], GuestAddress(*addr)).expect("in guest memory");
            }
            if id != SERIAL {
                return Err(broken(format!("request {request} got the serial {id:02x?}")));
            }
        }
        Ok(Done { ok: status == 0 })
    }

    /// The vring is at rest: what is in flight will be asked for anew.
    pub(super) fn stopped(&mut self, vring: u16) {
        let out: Vec<u64> = self.outstanding(vring).map(|ask| ask.request).collect();
        for request in out {
            self.entries[request as usize].issued_in = None;
        }
    }

    /// The guest has begun anew on this ring. What was under way is over without
    /// an answer: the requests.
    pub(super) fn reset(&mut self, vring: u16, ring: RingView) -> Vec<u64> {
        let given_up: Vec<u64> = self.outstanding(vring).map(|ask| ask.request).collect();
        for request in &given_up {
            let entry = &mut self.entries[*request as usize];
            (entry.used_len, entry.issued_in) = (Some(0), None);
        }
        self.completed += given_up.len() as u64;
        let queue = &mut self.queues[usize::from(vring)];
        queue.ring = ring;
        queue.holds.fill(None);
        queue.used = queue.order.len() as u64;
        queue.oldest = queue.used;
        given_up
    }

    /// The request of a try, if it is the last one.
    fn last_try(&mut self, of: Try) -> Option<&mut Entry> {
        let request = self.holder(of.vring, of.head).filter(|id| *id == of.request)?;
        let entry = &mut self.entries[request as usize];
        (entry.issued_in == Some((of.life, of.conn))).then_some(entry)
    }

    /// A fault was injected into a try: it fails, by this sector if one is to
    /// blame.
    pub(super) fn fails(&mut self, of: Try, sector: Option<u64>) {
        if let Some(entry) = self.last_try(of) {
            let Ask { sector: first, sectors, .. } = entry.ask;
            entry.fails |= sector.is_none_or(|at| (first..first + sectors).contains(&at));
        }
    }

    /// A fault was injected into a try: it does nothing.
    pub(super) fn lies(&mut self, of: Try) {
        if let Some(entry) = self.last_try(of) {
            entry.lies = true;
        }
    }

    /// Whether the last try of this request did nothing, by a fault.
    pub(super) fn has_lied(&self, request: u64) -> bool {
        self.entries[request as usize].lies
    }

    /// The disk has answered to a try.
    pub(super) fn answered(&mut self, of: Try, ok: bool) -> Result<(), Violation> {
        let Some(entry) = self.last_try(of) else { return Ok(()) };
        entry.answer = Some(ok);
        if ok == entry.fails {
            let (how, why) = match ok {
                true => ("has done", "an error was injected"),
                false => ("has failed", "nothing was injected"),
            };
            let message = format!("the disk {how} request {}, but {why}", of.request);
            return Err(Violation::new("injection", message));
        }
        Ok(())
    }

    /// The disk may only be asked for what a guest is waiting for, once on a
    /// connection.
    pub(super) fn check_issue(&mut self, job: &Job) -> Result<&Ask, Violation> {
        let Job { vring, head, life, conn, .. } = *job;
        let Some(request) = self.holder(vring, head) else {
            return Err(broken(format!(
                "the disk is asked for head {head} of vring {vring}, for which no request is out"
            )));
        };
        let entry = &mut self.entries[request as usize];
        let ask = &entry.ask;
        if entry.issued_in == Some((life, conn)) {
            return Err(broken(format!(
                "request {request} goes to the disk twice on one connection"
            )));
        }
        let same = job.verb == ask.verb
            && job.offset == ask.sector.wrapping_mul(SECTOR)
            && job.len == ask.sectors * SECTOR;
        if !same || ask.expect != Expect::Ok {
            return Err(broken(format!(
                "request {request} asks to {} {} sectors @{}, the disk is asked to {} {} bytes @{}",
                ask.verb.name(),
                ask.sectors,
                ask.sector,
                job.verb.name(),
                job.len,
                job.offset
            )));
        }
        let moves = matches!(job.verb, Verb::Read | Verb::Write);
        if moves && !joined(&job.segments).eq(joined(&ask.data)) {
            return Err(broken(format!(
                "request {request} has its data at {:x?}, the disk is given {:x?}",
                ask.data, job.segments
            )));
        }
        entry.issued_in = Some((life, conn));
        (entry.answer, entry.fails, entry.lies) = (None, false, false);
        Ok(&entry.ask)
    }
}
