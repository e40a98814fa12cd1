//! The holds of a coupon in the order of their expiry, as a draft leaves them.

use std::collections::{BTreeMap, HashMap};
use std::vec;

use crate::claiming::store::View;
use crate::claiming::store::holds::{Held, Hold};
use crate::pg::column::Text;

/// The search for the hold that expires first.
pub struct Expiries {
    /// The first expiry of the holds that were there before.
    first_before: Option<i64>,
    /// True if that hold is among those that change.
    has_lost_first: bool,
    /// The holds that were there before, if all have been read.
    read: Option<vec::IntoIter<(String, Held)>>,
    /// The hold at which the search stands, if it has begun, or none after the last. Holds only go while a draft is made,
    /// so the search never goes back.
    searched: Option<Option<(String, Held)>>,
    /// The expiries of the holds that are new, and the number of holds of each.
    new: BTreeMap<i64, usize>,
}

impl Expiries {
    /// Begins with the first expiry of the coupon as it was found.
    pub fn new(first_before: Option<i64>) -> Expiries {
        Expiries {
            first_before,
            has_lost_first: false,
            read: None,
            searched: None,
            new: BTreeMap::new(),
        }
    }

    /// Notes that a hold is new.
    pub fn add(&mut self, expires_at: i64) {
        *self.new.entry(expires_at).or_default() += 1;
    }

    /// Notes that a hold that was new is gone.
    pub fn remove(&mut self, expires_at: i64) {
        if let Some(count) = self.new.get_mut(&expires_at) {
            *count -= 1;
            if *count == 0 {
                self.new.remove(&expires_at);
            }
        }
    }

    /// Notes that a hold that was there before changes.
    pub fn change(&mut self, expires_at: i64) {
        self.has_lost_first |= Some(expires_at) == self.first_before;
    }

    /// The first expiry of all. `all` are the holds that were there before, if they have been read; `is_changed` returns
    /// true for the users of those that change.
    pub fn first(
        &mut self,
        view: &mut View<'_>,
        coupon_name: Text,
        all: Option<&HashMap<String, Held>>,
        is_changed: impl Fn(&str) -> bool,
    ) -> Option<i64> {
        let unchanged = if self.has_lost_first {
            self.first_unchanged(view, coupon_name, all, is_changed)
                .map(|(_, held)| held.expires_at)
        } else {
            self.first_before
        };
        let new = self.new.keys().next().copied();
        [unchanged, new].into_iter().flatten().min()
    }

    /// The hold that expires first of those that were there before and do not change, and its user.
    pub fn first_unchanged(
        &mut self,
        view: &mut View<'_>,
        coupon_name: Text,
        all: Option<&HashMap<String, Held>>,
        is_changed: impl Fn(&str) -> bool,
    ) -> Option<(String, Held)> {
        let first_before = self.first_before?;
        if self.searched.is_none() && self.read.is_none() {
            self.read = all.map(in_order);
        }
        loop {
            let next = match (&self.searched, &mut self.read) {
                (Some(None), _) => return None,
                (Some(Some((user_id, held))), _) if !is_changed(user_id) => {
                    return Some((user_id.clone(), *held));
                }
                (_, Some(read)) => read.next(),
                (None, None) => found(view.first_hold_from(coupon_name, first_before)),
                (Some(Some(_)), None) => found(view.next_hold()),
            };
            self.searched = Some(next);
        }
    }
}

fn in_order(holds: &HashMap<String, Held>) -> vec::IntoIter<(String, Held)> {
    let mut holds: Vec<_> = holds.clone().into_iter().collect();
    holds.sort_unstable_by_key(|(_, held)| held.expires_at);
    holds.into_iter()
}

fn found(hold: Option<Hold<'_>>) -> Option<(String, Held)> {
    hold.map(|hold| {
        let user_id = hold.user_id().map(Text::string).unwrap_or_default();
        (user_id, hold.held())
    })
}
