//! The search for an order of what several sessions did at the same time, in which the model gives the same
//! answers and rows.

use std::collections::HashSet;

use super::{
    calls::Call,
    coupon::State,
    sessions::{Deed, Record, Rows, Span},
};

/// A point of the search: what is done, what is committed, and what a session with the turn has not committed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Point {
    done: Vec<usize>,
    committed: State,
    /// The session that has changed the coupon, so holds its turn, with the state as it sees it.
    holder: Option<(usize, State)>,
    /// Of each session, the state at its savepoint, if it had the turn then.
    saved: Vec<Option<State>>,
}

/// Searches for the order.
pub struct Search<'a> {
    pub name: &'a str,
    pub records: &'a [Record],
    /// The rows afterwards.
    pub rows: &'a Rows,
}

/// The difference between the rows and the model, after the longest order that was found.
struct Failure {
    steps: usize,
    text: String,
}

impl Search<'_> {
    /// The state of the model at the end.
    ///
    /// # Errors
    /// Why there is no order.
    pub fn from(&self, state: &State) -> Result<State, String> {
        let start = Point {
            done: vec![0; self.records.len()],
            committed: State {
                events: Vec::new(),
                swept: 0,
                ..state.clone()
            },
            holder: None,
            saved: vec![None; self.records.len()],
        };
        let mut seen = HashSet::new();
        let mut failure = Failure {
            steps: 0,
            text: String::new(),
        };
        let found = self.search(start, &mut seen, &mut failure);
        found.ok_or(failure.text)
    }

    fn search(
        &self,
        point: Point,
        seen: &mut HashSet<Point>,
        failure: &mut Failure,
    ) -> Option<State> {
        if !seen.insert(point.clone()) {
            return None;
        }
        let next: Vec<Option<&(Deed, Span)>> = (0..self.records.len())
            .map(|n| self.records[n].get(point.done[n]))
            .collect();
        if next.iter().all(Option::is_none) {
            return match self.compare(&point.committed) {
                Ok(()) => Some(point.committed),
                Err(text) => {
                    failure.note(&point, text);
                    None
                }
            };
        }
        for (n, deed) in next.iter().enumerate() {
            let Some((deed, span)) = deed else {
                continue;
            };
            // What had been answered before this was sent comes first.
            let mut others = next.iter().enumerate();
            let late = others.any(|(other, deed)| {
                other != n && deed.is_some_and(|(_, done)| done.to < span.from)
            });
            if late {
                continue;
            }
            for skips in [false, true] {
                match self.follow(&point, n, deed, *span, skips) {
                    Ok(Some(point)) => {
                        let found = self.search(point, seen, failure);
                        if found.is_some() {
                            return found;
                        }
                    }
                    Ok(None) => {}
                    Err(text) => failure.note(&point, text),
                }
            }
        }
        None
    }

    /// The point after `deed` of session `n`; none if it would have to wait. If `skips`, a sweep leaves the coupon
    /// alone, because another session has its turn.
    fn follow(
        &self,
        point: &Point,
        n: usize,
        deed: &Deed,
        span: Span,
        skips: bool,
    ) -> Result<Option<Point>, String> {
        let sweep = matches!(deed, Deed::Call(Call::Expire(_), _));
        if skips && (!sweep || self.records.len() == 1) {
            return Ok(None);
        }
        let mut after = point.clone();
        after.done[n] += 1;
        let own = point.holder.as_ref().filter(|(holder, _)| *holder == n);
        match deed {
            Deed::Call(Call::Expire(_), answer) if skips => {
                let none = answer
                    .as_ref()
                    .is_ok_and(|rows| rows[0][0].as_deref() == Some("0"));
                return Ok(none.then_some(after));
            }
            Deed::Element(..) | Deed::Call(..) => {
                let before = own.map_or(&point.committed, |(_, state)| state);
                let mut state = before.clone();
                match deed {
                    Deed::Element(element, row) => state.element(element, row, span)?,
                    Deed::Call(call, answer) => state.call(call, answer, self.name, span)?,
                    _ => {}
                }
                if state != *before {
                    if point.holder.is_some() && own.is_none() {
                        return Ok(None);
                    }
                    after.holder = Some((n, state));
                }
            }
            Deed::Savepoint => after.saved[n] = own.map(|(_, state)| state.clone()),
            Deed::RollbackToSavepoint => {
                if own.is_some() {
                    after.holder = after.saved[n].take().map(|state| (n, state));
                }
            }
            Deed::ReleaseSavepoint => after.saved[n] = None,
            Deed::Commit => {
                if let Some((_, state)) = own {
                    after.committed = state.clone();
                    after.holder = None;
                }
            }
            Deed::Rollback => {
                if own.is_some() {
                    after.holder = None;
                }
            }
        }
        Ok(Some(after))
    }

    fn compare(&self, state: &State) -> Result<(), String> {
        let rows = state.rows();
        if rows != self.rows.rows {
            return Err(format!(
                "the tables have {:?}, the model {rows:?}",
                self.rows.rows
            ));
        }
        let (swept, told): (Vec<_>, Vec<_>) = self
            .rows
            .events
            .iter()
            .filter(|(kind, _)| kind != "sold_out" && kind != "available_again")
            .partition(|(kind, _)| kind == "expired");
        let swept: usize = swept
            .iter()
            .filter_map(|(_, count)| count.parse::<usize>().ok())
            .sum();
        let told: Vec<String> = told
            .iter()
            .map(|(kind, detail)| format!("{kind} {detail}"))
            .collect();
        if told != state.events || swept != state.swept {
            return Err(format!(
                "the events are {:?}, those of the model {:?}, and {} expired",
                self.rows.events, state.events, state.swept
            ));
        }
        Ok(())
    }
}

impl Failure {
    fn note(&mut self, point: &Point, text: String) {
        let steps: usize = point.done.iter().sum();
        if steps >= self.steps {
            *self = Self { steps, text };
        }
    }
}
