//! Values there and back through a real child: what is carried comes back equal.
//!
//! The whole table stands beside the codec; here are those that are lost most often, and the large.

#[path = "harness/mod.rs"]
mod harness;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use offspring::spawn;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn echo<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone + 'static>(value: T) {
    assert_eq!(spawn(value.clone(), |value: T| value).unwrap().wait().unwrap(), value);
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Clone, Debug)]
enum Key {
    Unit,
    Tuple(u8, String),
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Nested { inner: Option<Option<u8>> },
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
#[serde(tag = "type")]
enum Tagged {
    A { x: u8, address: std::net::IpAddr },
    B,
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
struct Flat {
    id: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    maybe: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
struct Unit;

behaviour! {
    fn types_that_need_a_describing_format() {
        for value in [Untagged::Number(-1), Untagged::Text("x".into()), Untagged::Nested { inner: Some(None) },
                      Untagged::Nested { inner: Some(Some(1)) }, Untagged::Nested { inner: None }] {
            echo(value);
        }
        echo(vec![Tagged::A { x: 1, address: "::1".parse().unwrap() }, Tagged::B]);
        let rest = serde_json::json!({"a": null, "b": [1, -2.5, "c"], "d": {"e": u64::MAX}});
        let rest: BTreeMap<String, serde_json::Value> = serde_json::from_value(rest).unwrap();
        echo(Flat { id: 1, maybe: None, rest: rest.clone() });
        echo(Flat { id: 1, maybe: Some("m".into()), rest });
    }

    fn none_is_not_some_of_nothing() {
        for value in [None, Some(None), Some(Some(None)), Some(Some(Some(7_u8)))] {
            echo(value);
        }
        echo(vec![None, Some(())]);
        echo((None::<Unit>, Some(Unit), Some(Box::new(Unit))));
        echo(vec![None, Some(serde_json::Value::Null), Some(serde_json::json!(1))]);
        echo(HashMap::from([("a".to_owned(), Some(None)), ("b".to_owned(), Some(Some(1_u8))), ("c".to_owned(), None)]));
        echo(Ok::<Option<()>, String>(Some(())));
    }

    fn numbers_and_chars_to_their_ends() {
        echo((u128::MAX, i128::MIN, Some(u128::MAX), vec![i128::MAX]));
        echo((u64::MAX, i64::MIN, f64::INFINITY, f32::NEG_INFINITY, f64::MIN_POSITIVE));
        echo(vec!['a', '\0', 'ß', '\u{10ffff}']);
        let bits = [f64::NAN.to_bits(), (-0.0_f64).to_bits(), 0x7ff0_0000_0000_0001];
        for bit in bits {
            let back = spawn(f64::from_bits(bit), |value: f64| value).unwrap().wait().unwrap();
            assert_eq!(back.to_bits(), bit);
        }
    }

    fn maps_with_keys_of_any_kind() {
        echo(BTreeMap::from([(Key::Unit, 1), (Key::Tuple(2, "t".into()), 2)]));
        echo(HashMap::from([((1_u8, 'x'), "tuple".to_owned())]));
        echo(BTreeMap::from([(None, 1), (Some(1_u8), 2)]));
        echo(BTreeMap::from([((), 1)]));
        echo(std::ffi::OsString::from("os"));
    }


}
