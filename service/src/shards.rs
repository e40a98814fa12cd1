//! Shards: databases that share the coupons. A coupon lives on one of them, which its name determines.
//!
//! Each name has a place, for ever, and each shard a part of the places. The extension for SQL callers computes the same
//! places, so both can be used on the same shards.

use std::sync::Arc;

use ring::digest::{SHA256, digest};

/// Number of places, and of shards at most.
const PLACES: usize = 256;

/// Number of a shard in logs and metrics; none if it is the only one.
pub type ShardNumber = Option<u8>;

/// One `T` for each shard. Clones share them.
#[derive(Debug)]
pub struct Shards<T>(Arc<[T]>);

impl<T> Shards<T> {
    /// Takes one for each shard, in the order of their numbers.
    ///
    /// # Errors
    /// Their count, which is no power of two up to 256.
    pub fn new(all: Vec<T>) -> Result<Self, usize> {
        let count = all.len();
        if count.is_power_of_two() && count <= PLACES {
            Ok(Self(all.into()))
        } else {
            Err(count)
        }
    }

    /// Takes the one of the only shard.
    pub fn only(one: T) -> Self {
        Self([one].into())
    }

    /// The one of the shard on which this coupon lives.
    pub fn of(&self, coupon_name: &str) -> &T {
        match &*self.0 {
            [only] => only,
            all => &all[usize::from(place(coupon_name)) & (all.len() - 1)],
        }
    }

    /// Number of shards.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All, in the order of the shards' numbers.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter()
    }

    /// Makes another thing for each shard.
    pub fn map<U>(&self, make: impl FnMut(&T) -> U) -> Shards<U> {
        Shards(self.iter().map(make).collect())
    }

    /// The same with the shards' numbers, unless one cannot be made.
    ///
    /// # Errors
    /// The first of `make`.
    pub fn try_map<U, E>(
        &self,
        mut make: impl FnMut(ShardNumber, &T) -> Result<U, E>,
    ) -> Result<Shards<U>, E> {
        let are_several = self.count() > 1;
        let numbered = (0..=u8::MAX).zip(self.iter());
        let all: Result<_, E> = numbered
            .map(|(number, one)| make(are_several.then_some(number), one))
            .collect();
        Ok(Shards(all?))
    }
}

impl<T> Clone for Shards<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Place of a coupon's name: the first byte of the SHA-256 of its UTF-8.
fn place(coupon_name: &str) -> u8 {
    digest(&SHA256, coupon_name.as_bytes()).as_ref()[0]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Names and their places, which the extension for SQL callers is compared with as well. The format is that of
    /// PostgreSQL's `copy`.
    const PLACES_OF_NAMES: &str = include_str!("../../tests/places.tsv");

    fn places_of_names() -> impl Iterator<Item = (String, u8)> {
        PLACES_OF_NAMES.lines().map(|line| {
            let (name, place) = line.rsplit_once('\t').unwrap();
            (unescaped(name), place.parse().unwrap())
        })
    }

    fn unescaped(text: &str) -> String {
        let mut characters = text.chars();
        let mut unescaped = String::new();
        while let Some(character) = characters.next() {
            unescaped.push(match character {
                '\\' => match characters.next().unwrap() {
                    'n' => '\n',
                    't' => '\t',
                    '\\' => '\\',
                    other => panic!("unknown escape {other}"),
                },
                other => other,
            });
        }
        unescaped
    }

    #[test]
    fn places_are_those_of_the_list() {
        let mut count = 0;
        for (name, expected) in places_of_names() {
            assert_eq!(place(&name), expected, "{name:?}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn shards_have_the_places_whose_last_bits_are_their_number() {
        for count in [1, 2, 8, 256] {
            let numbers = Shards::new((0..count).collect()).unwrap();
            for (name, place) in places_of_names() {
                assert_eq!(*numbers.of(&name), usize::from(place) % count, "{name:?}");
            }
        }
    }

    #[test]
    fn number_of_shards_is_a_power_of_two() {
        let is_accepted = |count: usize| Shards::new(vec![(); count]).is_ok();
        let accepted: Vec<usize> = (0..1000).filter(|&count| is_accepted(count)).collect();
        assert_eq!(accepted, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
    }
}
