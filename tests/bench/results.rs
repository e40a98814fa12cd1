//! Results: what was measured of each case, medians and ratios.

use std::{collections::BTreeMap, time::Duration};

use crate::case::{Case, Figures, Flush, NOON_CLIENTS, SNAPSHOT_CLIENTS, Scene, Subject};

/// The figures of each case's measurements, in their order, or the reason why there are none.
pub type Results = BTreeMap<Case, Vec<Result<Figures, String>>>;

/// Medians of the measurements of a case, with the least and the greatest rate.
#[derive(Clone, Copy, Debug)]
pub struct Middle {
    pub per_second: f64,
    pub least: f64,
    pub most: f64,
    pub p50: f64,
    pub p99: f64,
}

/// The median of the claims per second.
pub fn per_second(results: &Results, case: Case) -> Option<f64> {
    middle(results, case).map(|middle| middle.per_second)
}

/// The rate of `ours` as a multiple of the rate of `theirs`: the median of the ratios in each turn, in which both were
/// measured within minutes. The machine may become faster or slower, for both. None if they had not the same turns.
pub fn times(results: &Results, ours: Case, theirs: Case) -> Option<f64> {
    let rates = |case| {
        let rounds = results.get(&case).into_iter().flatten();
        rounds.map(|outcome| match outcome {
            Ok(Figures::Rate { per_second, .. }) => Some(per_second),
            _ => None,
        })
    };
    let turns = |case| results.get(&case).map(Vec::len);
    if turns(ours) != turns(theirs) {
        return None;
    }
    let mut ratios: Vec<f64> = rates(ours)
        .zip(rates(theirs))
        .filter_map(|(ours, theirs)| Some(ours? / theirs?))
        .collect();
    median(&mut ratios)
}

pub fn middle(results: &Results, case: Case) -> Option<Middle> {
    let mut rates = Vec::new();
    let mut p50s = Vec::new();
    let mut p99s = Vec::new();
    for figures in sound(results, case) {
        let Figures::Rate {
            per_second,
            p50,
            p99,
        } = figures
        else {
            continue;
        };
        rates.push(per_second);
        p50s.push(milliseconds(p50));
        p99s.push(milliseconds(p99));
    }
    let per_second = median(&mut rates)?;
    let (least, most) = (*rates.first()?, *rates.last()?);
    Some(Middle {
        per_second,
        least,
        most,
        p50: median(&mut p50s)?,
        p99: median(&mut p99s)?,
    })
}

/// The sound measurements of a case.
pub fn sound(results: &Results, case: Case) -> impl Iterator<Item = Figures> {
    results
        .get(&case)
        .into_iter()
        .flatten()
        .filter_map(|outcome| outcome.as_ref().ok())
        .copied()
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some((lower + upper) / 2.0)
}

pub fn case(flush: Flush, scene: Scene, clients: u32, subject: Subject) -> Case {
    Case {
        flush,
        scene,
        clients,
        subject,
    }
}

pub fn get_million() -> Case {
    case(Flush::Disk, Scene::GetMillion, 1, Subject::Honcho)
}

pub fn memory() -> Case {
    case(Flush::Disk, Scene::Memory, 256, Subject::Honcho)
}

pub fn noon(subject: Subject) -> Case {
    case(Flush::Disk, Scene::HttpNoon, NOON_CLIENTS, subject)
}

pub fn snapshot_case() -> Case {
    case(
        Flush::Disk,
        Scene::SqlSnapshot,
        SNAPSHOT_CLIENTS,
        Subject::Honcho,
    )
}

/// Claims per second at the beginning of a snapshot, and after many.
pub fn claims_under_snapshot(figures: Figures) -> Option<(f64, f64)> {
    match figures {
        Figures::Snapshot { claims, .. } => Some(claims),
        _ => None,
    }
}

/// The same for look-ups of the coupon.
pub fn gets_under_snapshot(figures: Figures) -> Option<(f64, f64)> {
    match figures {
        Figures::Snapshot { gets, .. } => Some(gets),
        _ => None,
    }
}

/// Milliseconds until the last client at noon had its answer.
pub fn last_answer(figures: Figures) -> Option<f64> {
    match figures {
        Figures::Noon { last, .. } => Some(milliseconds(last)),
        _ => None,
    }
}

/// Seconds until the last client at noon had its answer: from Honcho, and from the usual transaction with the better
/// pool.
pub fn last_answers(results: &Results) -> Option<(f64, f64)> {
    let last = |subject| median_of(results, noon(subject), last_answer);
    let usual = last(Subject::Pool4)?.min(last(Subject::Pool16)?);
    Some((last(Subject::Honcho)? / 1000.0, usual / 1000.0))
}

/// The number of clients that waited over a second for a connection at noon.
pub fn late_connections(figures: Figures) -> Option<f64> {
    match figures {
        Figures::Noon { late, .. } => Some(late.into()),
        _ => None,
    }
}

/// The median of this value of the measurements.
pub fn median_of(results: &Results, case: Case, of: fn(Figures) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = sound(results, case).filter_map(of).collect();
    median(&mut values)
}

/// The greatest value of all measurements: an upper bound holds for the worst.
pub fn most_of(results: &Results, case: Case, of: fn(Figures) -> Option<f64>) -> Option<f64> {
    sound(results, case).filter_map(of).max_by(f64::total_cmp)
}
