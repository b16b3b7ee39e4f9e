//! What a sink gets, and in which shape it keeps its place.

use serde_json::json;

use super::*;
use crate::config::ActionPattern;

fn record() -> Value {
    json!({
        "metadata": { "log_name": "gatepost.decision", "uid": "u" }, "severity_id": 2, "disposition": "Blocked",
        "actor": { "user": { "uid": "x", "name": "n" }, "app_name": "orders" },
        "api": { "operation": "Order.read" }, "resources": [{ "uid": "o-1" }, { "uid": "o-2" }],
        "unmapped": { "gatepost": { "decision": "deny" } },
    })
}

#[test]
fn a_filter_takes_what_fits_all_of_it() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let base = SinkFilter::default();
    let table = [
        (base.clone(), true, "nothing is asked for"),
        (SinkFilter { kinds: words(&["decision", "alert"]), ..base.clone() }, true, "one of its kinds"),
        (SinkFilter { kinds: words(&["alert"]), ..base.clone() }, false, "another kind"),
        (SinkFilter { decisions: words(&["deny"]), ..base.clone() }, true, "how it ended"),
        (SinkFilter { decisions: words(&["allow"]), ..base.clone() }, false, "another end"),
        (SinkFilter { actions: vec![ActionPattern::Prefix("Order.".into())], ..base.clone() }, true, "its action"),
        (SinkFilter { actions: vec![ActionPattern::Exact("Order".into())], ..base.clone() }, false, "another"),
        (SinkFilter { callers: words(&["orders"]), ..base.clone() }, true, "its caller"),
        (SinkFilter { callers: words(&["billing"]), ..base.clone() }, false, "another"),
        (SinkFilter { severity: 2, ..base.clone() }, true, "severe enough"),
        (SinkFilter { severity: 3, ..base.clone() }, false, "not"),
        (SinkFilter { kinds: words(&["decision"]), severity: 3, ..base }, false, "all must fit"),
    ];
    for (filter, expected, why) in table {
        assert_eq!(takes(&filter, &record()), expected, "{why}");
    }
    let lifecycle = json!({ "metadata": { "log_name": "gatepost.lifecycle" }, "severity_id": 1 });
    let narrow = SinkFilter { decisions: words(&["deny"]), callers: words(&["orders"]), ..SinkFilter::default() };
    assert!(takes(&narrow, &lifecycle), "what has no such member passes");
}

#[test]
fn a_mask_takes_a_path_out_wherever_it_leads() {
    let masked = |path: &str| {
        let mut record = record();
        remove(&mut record, &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        record
    };
    assert_eq!(masked("actor.user").pointer("/actor"), Some(&json!({ "app_name": "orders" })));
    assert_eq!(masked("resources.uid")["resources"], json!([{}, {}]), "in each item of a list");
    assert_eq!(masked("nowhere.to.be.found"), record());
}

#[test]
fn a_cursor_is_believed_for_its_own_spool_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("cursors")).unwrap();
    let read = || files::cursor(path, "siem", "chain").unwrap();
    assert_eq!(read(), Found::New);
    files::save(path, "siem", &Cursor { chain: "chain".into(), sequence: 7 }).unwrap();
    assert_eq!(read(), Found::At(7));
    let aside = path.join("cursors/siem.json.unusable");
    for garbage in
        ["", "{", "{\"chain\":\"other\",\"sequence\":7}", "\u{0}\u{0}", "{\"chain\":\"chain\",\"sequence\":-1}"]
    {
        std::fs::write(path.join("cursors/siem.json"), garbage).unwrap();
        assert_eq!(read(), Found::Unusable, "{garbage:?}");
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), garbage, "put aside");
        assert_eq!(read(), Found::New);
    }
}

#[test]
fn dead_letters_are_kept_up_to_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("dead-letter")).unwrap();
    let record = Outgoing { sequence: 7, uid: "u".into(), encoded: vec![b'x'; 1 << 20], ..Outgoing::default() };
    for _ in 0..80 {
        files::bury(folder.path(), "siem", std::iter::once((&record, "mapping"))).unwrap();
    }
    let size = |name: &str| std::fs::metadata(folder.path().join("dead-letter").join(name)).unwrap().len() >> 20;
    assert_eq!((size("siem.jsonl.1"), size("siem.jsonl")), (32, 32), "two files, and no more");
    let text = std::fs::read_to_string(folder.path().join("dead-letter/siem.jsonl")).unwrap();
    let letter: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&letter["sequence"], &letter["uid"], &letter["reason"]), (&json!(7), &json!("u"), &json!("mapping")));
}
