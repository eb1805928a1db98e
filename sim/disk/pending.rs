//! What the disk holds, by name.
//!
//! Names rise and few jobs are held at once, so a list in order does, and a job
//! that is taken out and put back does not move.

/// A map from names to values, in order of the names.
pub(super) struct InOrder<T>(Vec<(u64, Box<T>)>);

impl<T> InOrder<T> {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    fn find(&self, key: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&key, |(key, _)| *key)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, key: u64) -> Option<&T> {
        self.find(key).ok().map(|at| &*self.0[at].1)
    }

    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.find(key).ok().map(|at| &mut *self.0[at].1)
    }

    /// Also back where it was taken out.
    pub fn insert(&mut self, key: u64, value: Box<T>) {
        match self.find(key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub fn remove(&mut self, key: u64) -> Option<Box<T>> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().map(|(key, value)| (*key, &**value))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| &mut **value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_jobs_are_found_by_name_and_told_in_order() {
        let mut jobs = InOrder::new();
        for key in [3, 1, 7, 5] {
            jobs.insert(key, Box::new(10 * key));
        }
        assert_eq!(jobs.iter().collect::<Vec<_>>(), [(1, &10), (3, &30), (5, &50), (7, &70)]);
        let taken = jobs.remove(5).unwrap();
        assert_eq!((jobs.remove(4), jobs.len()), (None, 3));
        assert_eq!(jobs.get(5), None);
        jobs.insert(5, taken);
        *jobs.get_mut(3).unwrap() += 1;
        assert_eq!(jobs.values().copied().collect::<Vec<_>>(), [10, 31, 50, 70]);
    }
}
