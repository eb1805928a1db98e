//! The contents of a test block, shared by the guest and the host.
//!
//! Every sector says which block, which part of it and which generation it is,
//! and carries a checksum of all that. With at most one operation outstanding
//! per block there is exactly one right answer to every read, so a lost, late,
//! repeated, misplaced or torn write is seen, and told apart.
//!
//! Sector layout, little endian: magic u64, block u64, generation u64, seed
//! u64, sector index u64, filler, checksum u64 in the last eight bytes.
//! Generation 0 is a block nobody has written: all zeroes.

/// Bytes of a sector, the unit of the checksum.
pub const SECTOR: usize = 512;

/// Words of a sector; the checksum is the last of them.
const WORDS: usize = SECTOR / 8;

const MAGIC: u64 = u64::from_le_bytes(*b"MIDFLTv1");

/// One step of splitmix64: a good mixer that costs three multiplications.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn word(sector: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&sector[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

fn checksum(sector: &[u8]) -> u64 {
    (0..WORDS - 1).fold(0, |sum: u64, index| {
        (sum ^ word(sector, index)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// Writes generation `generation` of block `block` over all of `bytes`, whose
/// length is a multiple of [`SECTOR`].
pub fn fill(bytes: &mut [u8], block: u64, generation: u64, seed: u64) {
    for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let head = [MAGIC, block, generation, seed, index as u64];
        let mut filler = mix(block ^ mix(generation ^ mix(seed ^ index as u64)));
        for (at, chunk) in sector.chunks_exact_mut(8).enumerate() {
            let value = match head.get(at) {
                Some(value) => *value,
                None => {
                    filler = filler.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    filler
                }
            };
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(sector);
        sector[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The generation found in one sector of block `block`, or what is wrong.
pub fn sector_generation(
    sector: &[u8],
    block: u64,
    index: usize,
    seed: u64,
) -> Result<u64, String> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    if word(sector, 0) != MAGIC {
        return Err(format!("not a test sector: starts with {:02x?}", &sector[..16]));
    }
    if word(sector, WORDS - 1) != checksum(sector) {
        return Err("wrong checksum".to_string());
    }
    let (found_block, found_seed, found_index) =
        (word(sector, 1), word(sector, 3), word(sector, 4));
    if (found_block, found_seed, found_index) != (block, seed, index as u64) {
        return Err(format!("holds block {found_block} sector {found_index} seed {found_seed}"));
    }
    Ok(word(sector, 2))
}

/// Checks that every sector of `bytes` is block `block` in one of the
/// generations `allowed` (two are allowed only after a write that failed, whose
/// effect is unknown sector by sector). Returns the generation of the first
/// sector, or a description of the first thing wrong.
pub fn check(bytes: &[u8], block: u64, allowed: [u64; 2], seed: u64) -> Result<u64, String> {
    let mut first = None;
    for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
        let generation = sector_generation(sector, block, index, seed)
            .map_err(|what| format!("block {block} sector {index}: {what}"))?;
        if !allowed.contains(&generation) {
            return Err(format!(
                "block {block} sector {index}: generation {generation}, expected {}",
                allowed[0]
            ));
        }
        first.get_or_insert(generation);
    }
    first.ok_or_else(|| format!("block {block}: nothing to check"))
}

/// The one generation all sectors of `bytes` agree on.
pub fn generation(bytes: &[u8], block: u64, seed: u64) -> Result<u64, String> {
    let first = sector_generation(&bytes[..SECTOR], block, 0, seed)
        .map_err(|what| format!("block {block} sector 0: {what}"))?;
    check(bytes, block, [first, first], seed)
}
