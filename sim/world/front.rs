//! The front-end process.

use super::objects::{Object, ObjectId};
use super::{Event, World};
use crate::guest::memory::REGIONS;
use crate::oracle::Violation;
use crate::trace::{Lane, What};
use midflight::wire::{
    Decoder, Dialect, Envelope, FrontendReplies, FrontendReplyBody as Body,
    FrontendRequest as Req, InflightDescription, MemRegion, VringAddr, VringFile, VringState,
    encode_request,
};
use std::collections::VecDeque;

enum Todo {
    Tell(Req<ObjectId>),
    Ask(Req<ObjectId>),
    SetInflight,
    Running,
    Stopped,
}

/// Interim scripted front-end.
pub struct Front {
    decoder: Decoder<FrontendReplies, ObjectId>,
    pub conn: Option<u32>,
    todo: VecDeque<Todo>,
    waiting: bool,
    inflight: Option<(InflightDescription, ObjectId)>,
    memory: Vec<ObjectId>,
    kicks: Vec<ObjectId>,
    calls: Vec<ObjectId>,
    pub inbox: super::link::Inbox,
    pub running: bool,
    bases: Vec<u16>,
    pub want_pause: bool,
}

impl World<'_> {
    pub(super) fn new_front(&mut self) -> Front {
        let memory = self.guest_memory.ids.map(|r| self.objects.add(Object::Memory(r))).to_vec();
        let q = self.profile.queues;
        Front {
            decoder: Decoder::new(Dialect::default()),
            conn: None,
            todo: VecDeque::new(),
            waiting: false,
            inflight: None,
            memory,
            kicks: (0..q).map(|v| self.objects.add(Object::Kick(v))).collect(),
            calls: (0..q).map(|v| self.objects.add(Object::Call(v))).collect(),
            inbox: Default::default(),
            running: false,
            bases: vec![self.profile.first_index; usize::from(q)],
            want_pause: false,
        }
    }

    pub(super) fn front_connected(&mut self, conn: u32) {
        let features = self.features();
        let f = self.front.as_mut().unwrap();
        f.conn = Some(conn);
        f.decoder = Decoder::new(Dialect::default());
        f.inbox = Default::default();
        f.waiting = false;
        f.todo.clear();
        let protocol = (1 << 0) | (1 << 3) | (1 << 9) | (1 << 12) | (1 << 15);
        let mut t = vec![
            Todo::Tell(Req::SetOwner),
            Todo::Ask(Req::GetFeatures),
            Todo::Ask(Req::GetProtocolFeatures),
            Todo::Tell(Req::SetProtocolFeatures(protocol)),
            Todo::Ask(Req::GetQueueNum),
            Todo::Tell(Req::SetFeatures(features)),
        ];
        for (r, o) in REGIONS.iter().zip(&f.memory) {
            let region = MemRegion {
                guest_addr: r.guest,
                size: r.size,
                user_addr: r.user,
                mmap_offset: 0,
            };
            t.push(Todo::Tell(Req::AddMemReg(region, *o)));
        }
        f.todo.extend(t);
        self.front_start();
        self.front_go();
    }

    pub(super) fn front_start(&mut self) {
        let profile = self.profile.clone();
        let features = self.features();
        let layouts: Vec<_> = (0..profile.queues).map(|v| self.guest.layout(v)).collect();
        let f = self.front.as_mut().unwrap();
        let mut t = vec![Todo::Tell(Req::SetFeatures(features))];
        if f.inflight.is_none() {
            t.push(Todo::Ask(Req::GetInflightFd(InflightDescription {
                mmap_size: 0,
                mmap_offset: 0,
                num_queues: profile.queues,
                queue_size: profile.ring_size,
            })));
        }
        t.push(Todo::SetInflight);
        for (v, l) in (0u32..).zip(layouts) {
            let u = |a: u64| a + REGIONS[0].user;
            t.push(Todo::Tell(Req::SetVringNum(VringState { index: v, num: l.size.into() })));
            t.push(Todo::Tell(Req::SetVringBase(VringState {
                index: v,
                num: f.bases[v as usize].into(),
            })));
            t.push(Todo::Tell(Req::SetVringAddr(VringAddr {
                index: v,
                flags: 0,
                desc: u(l.desc),
                used: u(l.used),
                avail: u(l.avail),
                log: 0,
            })));
            t.push(Todo::Tell(Req::SetVringCall(VringFile {
                index: v as u8,
                handle: Some(f.calls[v as usize]),
            })));
            t.push(Todo::Tell(Req::SetVringKick(VringFile {
                index: v as u8,
                handle: Some(f.kicks[v as usize]),
            })));
        }
        for v in 0..u32::from(profile.queues) {
            t.push(Todo::Tell(Req::SetVringEnable(VringState { index: v, num: 1 })));
        }
        t.push(Todo::Running);
        f.todo.extend(t);
    }

    fn features(&self) -> u64 {
        let p = &self.profile;
        let mut f = 1 << 32 | 1 << 30 | 1 << 6 | 1 << 13 | 1 << 14;
        if p.event_idx {
            f |= 1 << 29;
        }
        if p.indirect {
            f |= 1 << 28;
        }
        if p.flush {
            f |= 1 << 9;
        }
        if p.queues > 1 {
            f |= 1 << 12;
        }
        f
    }

    pub(super) fn front_go(&mut self) {
        loop {
            let f = self.front.as_mut().unwrap();
            let Some(conn) = f.conn else { return };
            if f.waiting {
                return;
            }
            let Some(todo) = f.todo.pop_front() else { return };
            let (message, ask) = match todo {
                Todo::Tell(m) => (m, false),
                Todo::Ask(m) => (m, true),
                Todo::SetInflight => {
                    let (d, o) = f.inflight.unwrap();
                    (Req::SetInflightFd(d, o), false)
                }
                Todo::Running => {
                    f.running = true;
                    self.trace.say(Lane::Front, What::FrontSays { code: 1, a: 0, b: 0 });
                    self.front_is_running();
                    continue;
                }
                Todo::Stopped => {
                    f.running = false;
                    self.trace.say(Lane::Front, What::FrontSays { code: 2, a: 0, b: 0 });
                    self.front_is_stopped();
                    continue;
                }
            };
            f.waiting = ask;
            let (bytes, objects) =
                encode_request(&Envelope { message, need_reply: false }, &Dialect::default())
                    .unwrap();
            self.send_to_back(conn, &bytes, objects);
        }
    }

    pub(super) fn front_stop(&mut self) {
        let q = self.profile.queues;
        let f = self.front.as_mut().unwrap();
        for v in 0..u32::from(q) {
            f.todo.push_back(Todo::Tell(Req::SetVringEnable(VringState { index: v, num: 0 })));
        }
        for v in 0..u32::from(q) {
            f.todo.push_back(Todo::Ask(Req::GetVringBase(VringState { index: v, num: 0 })));
        }
        f.todo.push_back(Todo::Stopped);
        self.front_go();
    }

    pub(super) fn front_read(&mut self, conn: u32) -> Result<(), Violation> {
        let f = self.front.as_mut().unwrap();
        if f.conn != Some(conn) {
            return Ok(());
        }
        while let Some(piece) = f.inbox.read(f.decoder.wanted()) {
            self.trace.say(
                Lane::Link,
                What::Delivered {
                    to_back: false,
                    bytes: piece.bytes.len() as u64,
                    handles: piece.objects.len() as u64,
                },
            );
            f.decoder.push(&piece.bytes, piece.objects).map_err(|_| ()).unwrap();
            while let Some(r) = f.decoder.next() {
                let reply = r
                    .map_err(|e| Violation::new("front", format!("{:?}", e.error)))?
                    .message;
                match reply.body {
                    Body::Inflight(d, o) => f.inflight = Some((d, o)),
                    Body::VringState(s) => f.bases[s.index as usize] = s.num as u16,
                    _ => {}
                }
                f.waiting = false;
            }
        }
        self.front_go();
        Ok(())
    }

    /// The front-end sees the end of its connection.
    pub(super) fn front_hangup(&mut self, conn: u32) -> Result<(), Violation> {
        let mem = &self.guest_memory.mem;
        let used: Vec<u16> = (0..self.profile.queues)
            .map(|v| self.guest.layout(v).load_used_idx(mem).unwrap())
            .collect();
        let f = self.front.as_mut().unwrap();
        if f.conn != Some(conn) {
            return Ok(());
        }
        self.trace.say(Lane::Link, What::Hangup { to_back: false });
        f.conn = None;
        f.running = false;
        f.bases = used;
        f.todo.clear();
        self.schedule(50_000, Event::FrontConnect);
        Ok(())
    }

    pub(super) fn front_connect(&mut self) -> Result<(), Violation> {
        if self.front.as_ref().unwrap().conn.is_some() {
            return Ok(());
        }
        self.trace.say(Lane::Front, What::Connecting);
        match self.accept()? {
            Some(conn) => self.front_connected(conn),
            None => self.schedule(300_000, Event::FrontConnect),
        }
        Ok(())
    }
}
