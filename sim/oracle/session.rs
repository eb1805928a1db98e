//! What front-end and back-end say to each other, read off the bytes: where a
//! vring goes on, and when it may be fetched from.
// spec: vhost-user, "Ring states" and "Vring descriptor indices"

use super::Violation;

// Front-end message codes.
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ENABLE: u32 = 18;
const RESET_DEVICE: u32 = 34;
/// GET_VRING_BASE_SKIP_DRAIN, where a dialect has it.
const SKIP_DRAIN: u32 = 45;

const HEADER: usize = 12;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    started: bool,
    enabled: bool,
}

/// One connection, as its back-end has heard it.
#[derive(Debug)]
pub struct Session {
    vrings: Vec<State>,
    bytes: Vec<u8>,
}

/// What a message says about where a vring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which vring.
    pub vring: u16,
    /// The next available index to process.
    pub index: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

impl Session {
    /// A connection over which nothing was said.
    pub fn new(queues: u16) -> Self {
        Self { vrings: vec![State::default(); usize::from(queues)], bytes: Vec::new() }
    }

    /// The back-end is given these bytes: bases that the front-end sets.
    pub fn heard(&mut self, bytes: &[u8]) -> Vec<Base> {
        self.bytes.extend_from_slice(bytes);
        let mut bases = Vec::new();
        while let (Some(code), Some(size)) = (word(&self.bytes, 0), word(&self.bytes, 8)) {
            let end = HEADER + size as usize;
            if self.bytes.len() < end {
                break;
            }
            let message: Vec<u8> = self.bytes.drain(..end).collect();
            bases.extend(self.message(code, &message[HEADER..]));
        }
        bases
    }

    fn message(&mut self, code: u32, payload: &[u8]) -> Option<Base> {
        if code == RESET_DEVICE {
            self.vrings.fill(State::default());
        }
        let (index, num) = (word(payload, 0)?, word(payload, 4)?);
        // SET_VRING_KICK has the index in its lowest byte, with a flag above.
        let vring = if code == SET_VRING_KICK { index & 0xff } else { index } as u16;
        let state = self.vrings.get_mut(usize::from(vring));
        match (code, state) {
            (SET_VRING_KICK, Some(state)) => state.started = true,
            (SET_VRING_ENABLE, Some(state)) => state.enabled = num == 1,
            (GET_VRING_BASE | SKIP_DRAIN, Some(state)) => state.started = false,
            (SET_VRING_BASE, _) => return Some(Base { vring, index: num }),
            _ => {}
        }
        None
    }

    /// Whether new requests may be fetched from a vring.
    pub fn may_fetch(&self, vring: u16) -> bool {
        let state = self.vrings.get(usize::from(vring)).copied().unwrap_or_default();
        state.started && state.enabled
    }

    /// A request goes to the disk.
    pub fn check_fetch(&self, vring: u16, head: u16) -> Result<(), Violation> {
        if self.may_fetch(vring) {
            return Ok(());
        }
        let message =
            format!("vring {vring}: head {head} is fetched, but the vring is stopped or disabled");
        Err(Violation::new("session", message))
    }
}

/// Where a vring goes on by the back-end's answer to its stop, if these bytes
/// are one.
pub fn stop_answer(bytes: &[u8]) -> Option<Base> {
    match word(bytes, 0)? {
        GET_VRING_BASE | SKIP_DRAIN if word(bytes, 8)? == 8 => {
            Some(Base { vring: word(bytes, HEADER)? as u16, index: word(bytes, HEADER + 4)? })
        }
        _ => None,
    }
}

/// Bases of a vring that a front-end has set and was told last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bases {
    /// Set by it.
    pub set: Option<u32>,
    /// Answered to it.
    pub told: Option<u32>,
}

/// Where a vring stands, by its ring and its region, as a base has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// If nothing were in flight.
    pub used: u32,
    /// With what is in flight.
    pub told: u32,
    /// So many requests.
    pub inflight: u16,
    /// The vring is packed.
    pub packed: bool,
}

impl Standing {
    /// A base in words.
    pub fn say(&self, base: u32) -> String {
        match self.packed {
            false => base.to_string(),
            true => format!(
                "{} with wrap {}, used {} with wrap {}",
                base & 0x7fff,
                base >> 15 & 1,
                base >> 16 & 0x7fff,
                base >> 31
            ),
        }
    }
}

/// Hold an answer against what the vring's ring and region say: the next index
/// is the used index and all that is in flight. Of a packed vring it tells both.
// spec: vhost-user, "Vring descriptor indices for packed virtqueues"
pub fn check_answer(base: Base, at: Standing) -> Result<(), Violation> {
    if base.index == at.told {
        return Ok(());
    }
    Err(Violation::new(
        "base",
        format!(
            "vring {} is stopped with base {}, expected {}: used index {} and {} in flight",
            base.vring,
            at.say(base.index),
            at.say(at.told),
            at.say(at.used),
            at.inflight
        ),
    ))
}

/// Hold what the front-end sets against the same; after a crash it knows the
/// used index only, and of a packed vring what it was told last.
pub fn check_start(base: Base, at: Standing, last: &Bases) -> Result<(), Violation> {
    // A front-end that was told nothing says how a fresh ring begins.
    let stale = at.packed
        && (base.index == 0x8000_8000 || [last.set, last.told].contains(&Some(base.index)));
    if base.index == at.told || base.index == at.used || stale {
        return Ok(());
    }
    Err(Violation::new(
        "base",
        format!(
            "vring {} is started at base {}, expected {}, or {} with the {} in flight",
            base.vring,
            at.say(base.index),
            at.say(at.used),
            at.say(at.told),
            at.inflight
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: u32, words: &[u32]) -> Vec<u8> {
        let head = [code, 1, 4 * words.len() as u32];
        head.iter().chain(words).flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn session_follows_start_enable_and_stop_through_any_cut() {
        let mut session = Session::new(2);
        let said = [message(12, &[0x101, 0]), message(18, &[1, 1]), message(10, &[1, 77])].concat();
        let bases: Vec<_> = said.iter().flat_map(|byte| session.heard(&[*byte])).collect();
        assert_eq!(bases, [Base { vring: 1, index: 77 }]);
        assert!(session.may_fetch(1) && !session.may_fetch(0));
        session.heard(&message(18, &[1, 0]));
        assert!(!session.may_fetch(1));
        session.heard(&message(18, &[1, 1]));
        session.heard(&message(11, &[1, 0]));
        assert!(session.check_fetch(1, 3).is_err());
    }

    #[test]
    fn session_takes_a_base_out_of_an_answer_only() {
        assert_eq!(stop_answer(&message(11, &[2, 9])), Some(Base { vring: 2, index: 9 }));
        assert_eq!(stop_answer(&message(24, &[2, 9])), None);
        assert_eq!(stop_answer(&message(11, &[])), None);
        let base = |index| Base { vring: 0, index };
        let at = Standing { used: 65535, told: 2, inflight: 3, packed: false };
        let last = Bases { set: Some(0), told: None };
        assert!(check_answer(base(2), at).is_ok());
        assert!(check_answer(base(65535), at).is_err());
        assert!(check_start(base(65535), at, &Bases::default()).is_ok());
        assert!(check_start(base(0), at, &last).is_err());
        assert!(check_start(base(0), Standing { packed: true, ..at }, &last).is_ok());
    }
}
