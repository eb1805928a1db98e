//! What a write puts into a sector: the writer's tag and the sector's number,
//! over and over, so that a piece out of place is seen.

/// Tag of a request's writes; 0 is what was never written.
pub fn tag(request: u64) -> u64 {
    request + 1
}

/// Fill one sector.
pub fn fill(content: &mut [u8], tag: u64, sector: u64) {
    for (i, word) in (0u64..).zip(content.chunks_exact_mut(8)) {
        word.copy_from_slice(&word_at(tag, sector, i).to_le_bytes());
    }
}

fn word_at(tag: u64, sector: u64, index: u64) -> u64 {
    if index == 0 { tag } else { tag << 32 | sector << 8 | index }
}

/// Tag of a sector's content; `None` if no write looks like that.
pub fn decode(content: &[u8], sector: u64) -> Option<u64> {
    let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
    let tag = word(content.get(..8)?);
    // Without a way out in the middle, a processor compares many words at once.
    let differs = (0u64..).zip(content.chunks_exact(8)).fold(0, |differs, (i, chunk)| {
        let right = if tag == 0 { 0 } else { word_at(tag, sector, i) };
        differs | (word(chunk) ^ right)
    });
    (differs == 0).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_tells_torn_and_misplaced_sectors() {
        let (mut a, mut b) = ([0u8; 512], [0u8; 512]);
        assert_eq!(decode(&a, 4), Some(0));
        fill(&mut a, 9, 4);
        fill(&mut b, 10, 4);
        assert_eq!(decode(&a, 4), Some(9));
        assert_eq!(decode(&a, 5), None);
        a[256..].copy_from_slice(&b[256..]);
        assert_eq!(decode(&a, 4), None);
    }
}
