//! The guest: a block driver on every vring, and something to do.

mod framing;
mod hostile;
pub mod memory;

use crate::choices::{Ratio, Stream};
use crate::memory::Mem;
use crate::oracle::{Ask, Expect, Oracle, Violation};
use crate::pattern;
use crate::scenario::Request;
use crate::topology::{Ring, Topology};
use crate::trace::{Lane, Trace, Verb, What};
pub use hostile::Sabotage;
use midflight::driver::{
    BlkDriver, BlkOp, BlkRequest, DriverError, Framing, PackedDriver, PackedPosition, RangeSegment,
    RequestBuffers, RingFeatures, RingLayout, Span, SplitDriver,
};
use std::collections::{BTreeMap, VecDeque};
use vm_memory::{Bytes, GuestAddress};

/// A type that no block device knows.
const UNKNOWN_TYPE: u32 = 0x7777;

/// What a guest's turn leaves for the world to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Signal the vring's kick.
    pub kick: bool,
    /// Give the guest another turn after so many nanoseconds.
    pub again_after: Option<u64>,
}

/// What a vring's driver is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Ask for this.
    Ask(Request),
    /// When nothing is outstanding, wait.
    Rest {
        /// Microseconds.
        us: u64,
    },
    /// Break the rules; nothing follows on this vring.
    Sabotage(Sabotage),
    /// The next kick that is needed is not sent.
    LoseKick,
    /// Kick at once, needed or not.
    ExtraKick,
}

struct Queue {
    driver: BlkDriver,
    todo: VecDeque<Todo>,
    free_slots: Vec<u64>,
    /// Slot by request.
    slots: BTreeMap<u64, u64>,
    /// Used elements it has looked at.
    reaped: u64,
    /// A call or a wish came while the guest was paused.
    missed: bool,
    /// The guest has broken its rules, like this.
    spoiled: Option<Sabotage>,
    /// The next kick is not sent.
    lose_kick: bool,
    /// A kick that was needed was not sent, and none after it.
    kick_lost: bool,
}

/// See the module.
pub struct Guest {
    mem: Mem,
    stream: Stream,
    topology: Topology,
    queues: Vec<Queue>,
    depth: u64,
    next_request: u64,
    completed: u64,
    paused: bool,
    scratch: Vec<u8>,
}

fn blame(error: DriverError) -> Violation {
    Violation::new("driver", error.to_string())
}

impl Guest {
    /// A guest whose rings have been used up to the topology's first index.
    pub fn new(
        mem: Mem,
        mut stream: Stream,
        topology: &Topology,
        todo: Vec<VecDeque<Todo>>,
    ) -> Result<Self, Violation> {
        let depth = topology.depth.min(u64::from(topology.ring_size)).max(1);
        let mut slots = memory::slots(depth * u64::from(topology.queues), topology.max_sectors);
        let mut queues = Vec::new();
        for (vring, todo) in (0u16..).zip(todo) {
            let layout = memory::ring(topology.ring, vring, topology.ring_size);
            queues.push(Queue {
                driver: driver(&mem, &mut stream, layout, topology).map_err(blame)?,
                free_slots: slots.split_off(slots.len() - depth as usize),
                slots: BTreeMap::new(),
                reaped: 0,
                todo,
                missed: false,
                spoiled: None,
                lose_kick: false,
                kick_lost: false,
            });
        }
        Ok(Self {
            mem,
            stream,
            topology: topology.clone(),
            queues,
            depth,
            next_request: 0,
            completed: 0,
            paused: false,
            scratch: Vec::new(),
        })
    }

    /// Where a vring's ring lies.
    pub fn layout(&self, vring: u16) -> RingLayout {
        *self.queues[usize::from(vring)].driver.ring().layout()
    }

    /// The decisions so far.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Whether everything asked for was done, and nothing is left to ask.
    pub fn is_done(&self) -> bool {
        let excused: u64 = self.spoiled().map(|(queue, _)| queue.slots.len() as u64).sum();
        self.completed + excused == self.next_request
            && self.queues.iter().all(|q| q.todo.is_empty())
    }

    fn spoiled(&self) -> impl Iterator<Item = (&Queue, Sabotage)> {
        self.queues.iter().filter_map(|q| Some((q, q.spoiled?)))
    }

    /// What the guest has done to a vring, and requests that are lost with it.
    pub fn sabotage(&self, vring: u16) -> Option<(Sabotage, u64)> {
        let queue = self.queues.get(usize::from(vring))?;
        Some((queue.spoiled?, queue.slots.len() as u64))
    }

    /// Vrings whose device waits for a kick that was lost; they are told of it
    /// now.
    pub fn take_lost_kicks(&mut self) -> Vec<u16> {
        let lost = (0u16..).zip(&mut self.queues);
        lost.filter_map(|(i, q)| std::mem::take(&mut q.kick_lost).then_some(i)).collect()
    }

    /// Used elements that the guest has looked at.
    pub fn reaped(&self, vring: u16) -> u64 {
        self.queues[usize::from(vring)].reaped
    }

    /// Stop or go on.
    pub fn pause(&mut self, on: bool) {
        self.paused = on;
    }

    /// Whether it is stopped.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Go on in another host's memory, which is the same to the byte.
    pub fn move_to(&mut self, mem: Mem) {
        self.mem = mem;
    }

    /// Reset the device and begin anew. `used`: used entries of each vring, of
    /// which those that were not looked at never will be.
    pub fn reset(&mut self, used: &[u64]) -> Result<(), Violation> {
        for (queue, used) in self.queues.iter_mut().zip(used) {
            let layout = *queue.driver.ring().layout();
            queue.driver =
                driver(&self.mem, &mut self.stream, layout, &self.topology).map_err(blame)?;
            self.completed += queue.slots.len() as u64;
            queue.free_slots.extend(std::mem::take(&mut queue.slots).into_values());
            queue.reaped = *used;
            (queue.lose_kick, queue.kick_lost) = (false, false);
        }
        Ok(())
    }

    /// A call came that the guest has not seen.
    pub fn set_missed(&mut self, vring: u16) {
        self.queues[usize::from(vring)].missed = true;
    }

    /// Take up what came while the guest was paused: vrings to give a turn.
    pub fn take_missed(&mut self) -> Vec<u16> {
        let missed = (0u16..).zip(&mut self.queues);
        missed.filter_map(|(i, q)| std::mem::take(&mut q.missed).then_some(i)).collect()
    }

    /// A vring's driver runs: takes what is used, asks for more.
    pub fn turn(
        &mut self,
        vring: u16,
        oracle: &mut Oracle,
        trace: &mut Trace,
    ) -> Result<Turn, Violation> {
        if self.paused {
            self.queues[usize::from(vring)].missed = true;
            return Ok(Turn::default());
        }
        if self.queues[usize::from(vring)].spoiled.is_some() {
            return Ok(Turn::default());
        }
        if self.stream.chance("calls off", Ratio::new(1, 2)) {
            let queue = &mut self.queues[usize::from(vring)];
            queue.driver.ring_mut().disable_calls(&self.mem).map_err(blame)?;
        }
        self.reap(vring, oracle, trace)?;
        if let Some(rest) = self.take_rest(vring) {
            return Ok(Turn { again_after: Some(rest), ..Turn::default() });
        }
        let extra = self.take_odd_kicks(vring);
        let queue = &self.queues[usize::from(vring)];
        if let Some(Todo::Sabotage(how)) = queue.todo.front().copied()
            && how.fits(queue.driver.ring())
        {
            return Ok(self.sabotage_now(vring, how, oracle, trace));
        }
        let room = self.room(vring);
        if room > 0 {
            let batch = self.stream.range("batch", 1, self.topology.batch.min(room));
            for _ in 0..batch {
                if !self.offer(vring, oracle, trace)? {
                    break;
                }
            }
        }
        let queue = &mut self.queues[usize::from(vring)];
        let published = queue.driver.publish(&self.mem).map_err(blame)?;
        let mut turn = Turn::default();
        if published > 0 {
            turn.kick = queue.driver.kick_needed(&self.mem).map_err(blame)?;
            let index = queue.driver.ring().avail_idx();
            trace.say(Lane::Guest, What::Published { vring, index, kick: turn.kick });
            oracle.published(&self.mem, vring)?;
            let queue = &mut self.queues[usize::from(vring)];
            if turn.kick {
                queue.kick_lost = std::mem::take(&mut queue.lose_kick);
                turn.kick = !queue.kick_lost;
            }
        }
        turn.kick |= extra;
        self.ask_for_call(vring, &mut turn)?;
        if turn.again_after.is_none() && self.room(vring) > 0 && published > 0 {
            turn.again_after = Some(1_000 * self.stream.below("think", 60));
        }
        Ok(turn)
    }

    /// Kicks that are too many or too few from here on; whether to kick at once.
    fn take_odd_kicks(&mut self, vring: u16) -> bool {
        let queue = &mut self.queues[usize::from(vring)];
        let mut extra = false;
        while let Some(odd @ (Todo::LoseKick | Todo::ExtraKick)) = queue.todo.front().copied() {
            queue.todo.pop_front();
            extra |= odd == Todo::ExtraKick;
            queue.lose_kick |= odd == Todo::LoseKick;
        }
        extra
    }

    fn sabotage_now(
        &mut self,
        vring: u16,
        how: Sabotage,
        oracle: &mut Oracle,
        trace: &mut Trace,
    ) -> Turn {
        let queue = &mut self.queues[usize::from(vring)];
        let busy: Vec<u16> = queue.driver.pending().map(|(head, _)| head).collect();
        how.commit(&self.mem, queue.driver.ring(), &busy);
        queue.spoiled = Some(how);
        queue.todo.clear();
        oracle.spoiled(vring);
        trace.say(Lane::Guest, What::Sabotaged { vring, how });
        // Whatever was asked for, it wants to be seen.
        Turn { kick: true, again_after: None }
    }

    /// Requests this vring may put out now.
    fn room(&self, vring: u16) -> u64 {
        let queue = &self.queues[usize::from(vring)];
        let asks = queue.todo.iter().take_while(|todo| matches!(todo, Todo::Ask(_)));
        let most = self.depth - queue.slots.len() as u64;
        asks.take(most as usize).count() as u64
    }

    /// The driver has come to a rest, and nothing is outstanding: nanoseconds.
    fn take_rest(&mut self, vring: u16) -> Option<u64> {
        let queue = &mut self.queues[usize::from(vring)];
        match queue.todo.front() {
            Some(Todo::Rest { us }) if queue.slots.is_empty() => {
                let rest = 1_000 * us;
                queue.todo.pop_front();
                Some(rest)
            }
            _ => None,
        }
    }

    fn ask_for_call(&mut self, vring: u16, turn: &mut Turn) -> Result<(), Violation> {
        let queue = &mut self.queues[usize::from(vring)];
        let out = u64::from(queue.driver.ring().outstanding());
        if out == 0 {
            return Ok(());
        }
        let count = match self.stream.below("call.after", 4) {
            3 => self.stream.range("call.count", 1, out),
            _ => 1,
        };
        let ring = queue.driver.ring_mut();
        if ring.enable_calls_after(&self.mem, count as u16).map_err(blame)? {
            turn.again_after = Some(0);
        }
        Ok(())
    }

    fn reap(&mut self, vring: u16, oracle: &Oracle, trace: &mut Trace) -> Result<(), Violation> {
        let queue = &mut self.queues[usize::from(vring)];
        while let Some(done) = queue.driver.reap(&self.mem).map_err(blame)? {
            let request = done.token;
            trace.say(
                Lane::Guest,
                What::Completed {
                    vring,
                    head: done.head,
                    request,
                    status: done.status.code(),
                    len: done.len,
                },
            );
            if oracle.ledger().holder(vring, done.head) == Some(request) {
                let message = format!("request {request} is reaped, but has no used entry");
                return Err(Violation::new("driver", message));
            }
            let slot = queue.slots.remove(&request).ok_or_else(|| {
                Violation::new("driver", format!("request {request} is reaped twice"))
            })?;
            queue.free_slots.push(slot);
            queue.reaped += 1;
            self.completed += 1;
        }
        Ok(())
    }

    /// Put one more request into the ring; false if it has no room now.
    fn offer(
        &mut self,
        vring: u16,
        oracle: &mut Oracle,
        trace: &mut Trace,
    ) -> Result<bool, Violation> {
        let queue = &mut self.queues[usize::from(vring)];
        let Some(Todo::Ask(ask)) = queue.todo.front().copied() else { return Ok(false) };
        let Some(slot) = queue.free_slots.pop() else { return Ok(false) };
        let data_len = ask.data_len();
        let framing = framing::framing(&mut self.stream, self.topology.indirect);
        let spread = framing::spread(&mut self.stream, data_len);
        let request = self.next_request;
        let mut place = place(slot, &spread);
        self.fill(&ask, &place.data, request);
        let result = match self.submit(request, &ask, &place, &framing) {
            // A ring with nothing in it must take the plainest chain.
            Err(DriverError::RingFull { .. })
                if self.queues[usize::from(vring)].driver.pending().next().is_none() =>
            {
                place = self::place(slot, &[(data_len, 0)][..usize::from(data_len > 0)]);
                self.fill(&ask, &place.data, request);
                self.submit(request, &ask, &place, &Framing::CLASSIC)
            }
            other => other,
        };
        let queue = &mut self.queues[usize::from(vring)];
        let head = match result {
            Ok(head) => head,
            Err(DriverError::RingFull { .. }) => {
                queue.free_slots.push(slot);
                return Ok(false);
            }
            Err(other) => return Err(blame(other)),
        };
        queue.slots.insert(request, slot);
        queue.todo.pop_front();
        self.next_request += 1;
        let Request { verb, sector, sectors, .. } = ask;
        let expect = ask.expect(self.topology.sectors);
        trace.say(Lane::Guest, What::Offered { vring, head, request, verb, sector, sectors });
        oracle.offered(Ask {
            request,
            vring,
            head,
            verb,
            sector,
            sectors,
            expect,
            data: place.data.iter().map(|s| (s.addr, s.len)).collect(),
            status: place.status,
            published: None,
            order: 0,
        });
        Ok(true)
    }

    fn submit(
        &mut self,
        request: u64,
        ask: &Request,
        place: &Place,
        framing: &Framing,
    ) -> Result<u16, DriverError> {
        let Request { vring, verb, sector, sectors, flags, .. } = *ask;
        let range = [RangeSegment { sector, num_sectors: sectors as u32, flags }];
        let op = match verb {
            Verb::Read => BlkOp::In { sector },
            Verb::Write => BlkOp::Out { sector },
            Verb::Flush => BlkOp::Flush,
            Verb::GetId => BlkOp::GetId,
            Verb::Discard => BlkOp::Discard(&range),
            Verb::WriteZeroes => BlkOp::WriteZeroes(&range),
            Verb::Unknown => BlkOp::Other { kind: UNKNOWN_TYPE, sector, writable: true },
        };
        let buffers = RequestBuffers {
            header: place.header,
            data: &place.data,
            status: place.status,
            table: Some(place.table),
        };
        let driver = &mut self.queues[usize::from(vring)].driver;
        driver.submit(&self.mem, &BlkRequest { op, token: request }, &buffers, framing)
    }

    /// Give a write its content, and a read a buffer that is surely not right.
    fn fill(&mut self, ask: &Request, data: &[Span], request: u64) {
        if matches!(ask.verb, Verb::Discard | Verb::WriteZeroes) {
            return;
        }
        self.scratch.clear();
        self.scratch.resize(ask.data_len() as usize, 0xee);
        if ask.verb == Verb::Write && ask.expect(self.topology.sectors) == Expect::Ok {
            let tag = pattern::tag(request);
            for (sector, content) in (ask.sector..).zip(self.scratch.chunks_exact_mut(512)) {
                pattern::fill(content, tag, sector);
            }
        }
        let mut at = 0;
        for span in data {
            let piece = &self.scratch[at..at + span.len as usize];
            self.mem.write_slice(piece, GuestAddress(span.addr)).expect("slots lie in memory");
            at += piece.len();
        }
    }
}

/// A driver over a ring that has come as far as the topology says, as an earlier
/// life would have left it.
fn driver(
    mem: &Mem,
    stream: &mut Stream,
    layout: RingLayout,
    topology: &Topology,
) -> Result<BlkDriver, DriverError> {
    let packed = topology.ring == Ring::Packed;
    let features =
        RingFeatures { event_idx: topology.event_idx, indirect: topology.indirect, packed };
    let first = topology.first_index;
    if packed {
        let (index, wrap) = (first % layout.size, (first / layout.size).is_multiple_of(2));
        let at = PackedPosition { index, wrap };
        let mut ring = PackedDriver::start_at(mem, layout, features, at)?;
        // A driver may call its buffers whatever it likes.
        if stream.below("ids", 2) == 1 {
            let ids: Vec<u16> = (0..layout.size).map(|i| 4_000 - 7 * i).collect();
            ring.use_ids(&ids)?;
        }
        return Ok(BlkDriver::over(ring));
    }
    for index in [layout.avail_idx(), layout.used_idx()] {
        mem.write_obj(first.to_le(), GuestAddress(index)).expect("rings lie in memory");
    }
    // With EVENT_IDX both sides left their wishes behind as well.
    if topology.event_idx {
        for event in [layout.used_event(), layout.avail_event()] {
            mem.write_obj(first.to_le(), GuestAddress(event)).expect("rings lie in memory");
        }
    }
    Ok(BlkDriver::over(SplitDriver::attach(mem, layout, features, first, &[])?))
}

/// Addresses of one request's parts.
struct Place {
    table: u64,
    header: u64,
    data: Vec<Span>,
    status: u64,
}

/// Table, then header, data pieces and status as close as the holes allow.
fn place(slot: u64, spread: &[(u64, u64)]) -> Place {
    let header = slot + memory::TABLE;
    let mut at = header + 16;
    let mut data = Vec::new();
    for (len, hole) in spread {
        data.push(Span { addr: at, len: *len as u32 });
        at += len + hole;
    }
    Place { table: slot, header, data, status: at }
}
