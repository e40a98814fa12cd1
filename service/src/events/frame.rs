//! Frames: the text of server-sent events. Each is written once for all watchers.
//!
//! axum's `Sse` would write an event anew for each of them, and keeps a timer for each.

use axum::body::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::database::{CouponEvent, Stock};

/// A comment, which shows clients and proxies that the stream is alive.
pub(super) const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// Kind of the last event of a coupon.
const DELETED: &str = "deleted";

/// An event as watchers receive it.
#[derive(Clone, Debug)]
pub(super) struct EventFrame {
    pub id: i64,
    /// True if the coupon is gone.
    pub is_last: bool,
    pub text: Bytes,
}

/// Data of an event.
#[derive(Serialize)]
struct EventData<'a> {
    coupon_name: &'a str,
    kind: &'a str,
    at: &'a str,
    actor: &'a str,
    details: &'a RawValue,
}

impl EventFrame {
    pub fn new(event: &CouponEvent) -> serde_json::Result<Self> {
        let data = serde_json::to_string(&EventData {
            coupon_name: &event.coupon_name,
            kind: &event.kind,
            at: &event.at,
            actor: &event.actor,
            details: &event.details,
        })?;
        let CouponEvent { id, kind, .. } = event;
        // The table's owner may have inserted a kind that would end its line.
        let name: String = kind.chars().filter(|letter| !letter.is_control()).collect();
        Ok(Self {
            id: *id,
            is_last: kind == DELETED,
            text: format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into(),
        })
    }
}

/// The event `stock`. It has no id, because nothing is missed if it is.
pub(super) fn stock(stock: &Stock) -> serde_json::Result<Bytes> {
    let data = serde_json::to_string(stock)?;
    Ok(format!("event: stock\ndata: {data}\n\n").into())
}

/// Tells the client the id after which it would resume, without an event.
pub(super) fn position(id: i64) -> Bytes {
    format!("id: {id}\n\n").into()
}

/// The event `reset`: the client may have missed events, and the stream goes on after `id`.
pub(super) fn reset(id: i64) -> Bytes {
    format!("id: {id}\nevent: reset\ndata: {{}}\n\n").into()
}

/// Splits a frame with an id into this and the rest; none if it has none.
pub(super) fn split_id(frame: &[u8]) -> Option<(i64, &[u8])> {
    let text = frame.strip_prefix(b"id: ")?;
    let end = text.iter().position(|&byte| byte == b'\n')?;
    let (id, rest) = text.split_at(end);
    Some((str::from_utf8(id).ok()?.parse().ok()?, rest))
}

/// Makes a frame with the ids of all shards out of the rest of a frame.
pub(super) fn join_ids(ids: &[i64], rest: &[u8]) -> Bytes {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    let id = ids.join("-");
    [b"id: ", id.as_bytes(), rest].concat().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_an_event_ends_its_line() {
        let event = CouponEvent {
            id: 17,
            coupon_name: "two\nlines\r\u{2028}".to_owned(),
            kind: "odd\n\ndata: kind".to_owned(),
            at: "2026-01-31T12:00:00.000000Z".to_owned(),
            actor: "shop/\r\n".to_owned(),
            details: RawValue::from_string(r#"{"user_id":"a\nb"}"#.to_owned()).unwrap(),
        };
        let frame = EventFrame::new(&event).unwrap();
        let text = str::from_utf8(&frame.text).unwrap();
        let lines: Vec<&str> = text.split(['\n', '\r']).collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[..2], ["id: 17", "event: odddata: kind"]);
        let data = lines[2].strip_prefix("data: ").unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["coupon_name"], event.coupon_name);
        assert_eq!(data["details"]["user_id"], "a\nb");
        assert_eq!(lines[3..], ["", ""]);
        assert!(!frame.is_last);
    }

    #[test]
    fn ids_of_all_shards_take_the_place_of_one() {
        for (frame, expected) in [
            (position(17), "id: 4-17-0\n\n"),
            (reset(17), "id: 4-17-0\nevent: reset\ndata: {}\n\n"),
        ] {
            let (id, rest) = split_id(&frame).unwrap();
            assert_eq!(join_ids(&[4, id, 0], rest), expected);
        }
        assert_eq!(split_id(&COMMENT), None);
    }
}
