//! What is carried (each line: values that come back equal), what is refused, and that no bytes do harm.

use super::output::DIRECT;
use super::{Encoded, decode, encode, encode_to_cross};
use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, LinkedList, VecDeque};
use std::ffi::CString;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroI128, NonZeroU8, Wrapping};
use std::ops::Bound;
use std::time::{Duration, SystemTime};

#[track_caller]
pub(super) fn carried<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let bytes = encode(&value).unwrap_or_else(|error| panic!("{value:?} is refused: {error}"));
    assert!(*encode_to_cross(&value).unwrap().bytes().unwrap() == bytes, "{value:?} crosses in another way");
    let back: T = decode(&bytes).unwrap_or_else(|error| panic!("{value:?} does not come back: {error}"));
    assert_eq!(back, value);
    if let Some((_, cut)) = bytes.split_last() {
        assert!(decode::<T>(cut).is_err(), "{value:?} comes back from too few bytes");
    }
    assert!(
        decode::<T>(&[&bytes[..], &[0xc0]].concat()).is_err(),
        "{value:?} comes back from too many bytes"
    );
}

/// Carries the value by itself and in all places that might treat it in their own way.
#[track_caller]
pub(super) fn carried_anywhere<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(value: T) {
    carried(Places {
        some: Some(value.clone()),
        twice: Some(Some(Newtype(Some(value.clone())))),
        few: vec![value.clone()],
        many: vec![value.clone(); 9],
        pair: (1, value.clone()),
        map: BTreeMap::from([(1, value.clone())]),
        variants: vec![
            External::Newtype(value.clone()),
            External::Tuple(value.clone(), 1),
            External::Struct { value: value.clone() },
        ],
        itself: value,
    });
}

/// Carries the value also in the places which serde reads into a buffer first.
#[track_caller]
pub(super) fn carried_buffered<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(value: T) {
    carried_anywhere(value.clone());
    carried(Some(Buffered {
        untagged: vec![
            Some(Untagged::Pair { left: value.clone(), right: Some(value.clone()) }),
            Some(Untagged::Tuple(value.clone(), value.clone())),
        ],
        tagged: vec![Internal::Struct { value: value.clone() }],
        inner: Struct { a: 2, own: value.clone(), last: Some(value.clone()) },
        rest: BTreeMap::from([("more".to_string(), value.clone()), ("most".to_string(), value)]),
    }));
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
pub(super) struct Places<T> {
    itself: T,
    some: Option<T>,
    twice: Option<Option<Newtype<Option<T>>>>,
    few: Vec<T>,
    many: Vec<T>,
    pair: (u8, T),
    map: BTreeMap<u8, T>,
    variants: Vec<External<T>>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
pub(super) struct Buffered<T> {
    untagged: Vec<Option<Untagged<T>>>,
    tagged: Vec<Internal<T>>,
    #[serde(flatten)]
    inner: Struct<T>,
    #[serde(flatten)]
    rest: BTreeMap<String, T>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
pub(super) struct Newtype<T>(T);

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Clone, Copy)]
pub(super) struct Unit;

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, Debug, Clone)]
struct Empty {}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
struct EmptyTuple();

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Clone)]
pub(super) struct Key {
    x: i8,
    y: Option<char>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
pub(super) struct Struct<T> {
    a: i32,
    own: T,
    last: Option<T>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Clone)]
pub(super) enum External<T> {
    Unit,
    Newtype(T),
    Tuple(T, u8),
    Struct { value: T },
    None(),
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(tag = "kind")]
pub(super) enum Internal<T> {
    Unit,
    Newtype(Struct<T>),
    Struct { value: T },
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(tag = "t", content = "c")]
pub(super) enum Adjacent<T> {
    Unit,
    Newtype(T),
    Tuple(T, u8),
    Struct { value: T },
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(untagged)]
pub(super) enum Untagged<T> {
    Pair { left: T, right: Option<T> },
    Tuple(T, T),
    Text(String),
    Unit,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
pub(super) struct Flattened {
    first: u64,
    #[serde(flatten)]
    tagged: Internal<Option<()>>,
    #[serde(flatten)]
    variant: External<Option<Option<u8>>>,
    #[serde(flatten)]
    perhaps: Option<Key>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone, Default)]
struct Sparse {
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    b: Vec<u8>,
    #[serde(skip)]
    c: u8,
    #[serde(default)]
    d: Option<Option<()>>,
    #[serde(flatten)]
    e: HashMap<String, Option<Option<u8>>>,
}

macro_rules! table {
    ($($name:ident: $check:ident [$($value:expr),* $(,)?];)*) => {$(
        #[test]
        fn $name() {
            $($check($value);)*
        }
    )*};
}

table! {
    options_in_options: carried_buffered [
        None::<Option<Option<u8>>>, Some(None::<Option<u8>>), Some(Some(None::<u8>)), Some(Some(Some(5u8))),
        Some(Newtype(None::<u8>)), Some(Newtype(Some(5u8))),
    ];
    options_of_nothing: carried_buffered [
        None::<()>, Some(()), None::<Unit>, Some(Unit), Some(Newtype(Some(()))), Some(Newtype(None::<()>)),
        (Some(PhantomData::<u8>), Some(Box::new(Newtype(()))), Ok::<_, Unit>(Some(())), Err::<Option<()>, _>(Some(Unit))),
    ];
    options_of_options_in_collections: carried_buffered [
        (vec![Some(Some(())), Some(None), None], BTreeMap::from([("a".to_string(), None), ("b".into(), Some(None::<u8>))])),
    ];
    nothing: carried_buffered [(), Unit, (PhantomData::<String>, (Unit, ((), Empty {})), [(); 3], vec![(); 9])];
    json: carried_buffered [
        json!(null), json!([null, [null], {"a": null}]), json!(u64::MAX), json!(i64::MIN), json!(-1.5e300), json!(1.0),
        json!("\0 \u{1F600}"), json!(true), json!({}), json!([]), json!([1, 2, 3, 4, 5, 6, 7, 8, 9]),
        json!([1, 2, 3, 4, 5, 6, 7, 8, 9, "ten", null, 256]), json!({"deep": {"er": [{"": [[[]]]}]}}),
        (json!({"a": 1, "null": null}).as_object().unwrap().clone(), Some(json!(null)), Some(json!([])), None::<Value>),
    ];
    numbers: carried_buffered [
        ((u8::MAX, i8::MIN, u16::MAX, i16::MIN, u32::MAX, i32::MIN), (u64::MAX, i64::MIN, usize::MAX, isize::MIN, true, false),
        [-128i64, -129, -32, -33, 127, 128, 255, 256, 65535, 65536, -32769, 1 << 32, -(1 << 31) - 1],
        (NonZeroU8::MAX, Wrapping(200u8), 0.1f64, f32::MIN_POSITIVE)),
    ];
    numbers_of_128_bits: carried_anywhere [u128::MAX, i128::MIN, (0u128, i128::MAX, -1i128, NonZeroI128::MIN, Some(u128::MAX))];
    texts: carried_buffered [
        'x', '\0', '\u{10FFFF}', String::new(), "\0 é \u{1F600}".to_string(), "x".repeat(70_000),
        (Cow::Borrowed("borrowed").into_owned(), Box::<str>::from("boxed"), std::path::PathBuf::from("/a/ü")),
    ];
    bytes: carried_buffered [
        vec![0u8; 0], vec![0u8; 7], vec![255u8; 8], (0..=255u8).collect::<Vec<_>>(), vec![1u8; 70_000], [3u8; 32],
        (vec![vec![1u8; 9], vec![], vec![2; 300]], vec![-1i8; 20], vec![300u16; 20], vec![Newtype(3u8); 9], Some(vec![9u8; 9])),
        (1u8, 2u8, 3u8, 4u8, 5u8, 6u8, 7u8, "8".to_string(), (1u8, 2u8, 3u8, 4u8, 5u8, 6u8, 7u8, 8u8), (1u8, 2u8)),
    ];
    large_strings: carried_buffered [
        "x".repeat(DIRECT - 1), "ü".repeat(DIRECT / 2), ByteBuf::from(vec![1; DIRECT - 1]), ByteBuf::from(vec![1; DIRECT]),
        Some(Some("x".repeat(DIRECT))),
        (1u8, "x".repeat(DIRECT), Some(Some(Newtype(Some(ByteBuf::from(vec![2; DIRECT + 1]))))), "y".repeat(300), vec![3u8; 9]),
    ];
    byte_strings: carried_buffered [ByteBuf::from(vec![255, 0, 254]), ByteBuf::new(), ByteBuf::from([200; 300])];
    told_apart_by_human_readable: carried_buffered [
        (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), SocketAddr::from(([1, 2, 3, 4], 5)), Id([9; 4])),
    ];
    containers: carried [
        BTreeSet::from([3u8, 1, 2]), (0..20u8).collect::<HashSet<_>>(), LinkedList::from([1u8; 9]), VecDeque::from([1u8; 9]),
        [0u64; 32], Reverse(Some(())), Duration::new(3, 999_999_999), SystemTime::UNIX_EPOCH + Duration::from_nanos(1),
        1..5, 1..=5u8, (Bound::Included(3), Bound::Excluded(Unit)), Bound::<()>::Unbounded, Ok::<Option<()>, u8>(Some(())),
        Err::<(), Option<Option<u8>>>(Some(None)), Some(Err::<Unit, Unit>(Unit)), (0..70_000).collect::<Vec<i32>>(),
        (0..70_000).map(|i| (i, Some(i))).collect::<HashMap<_, _>>(), vec![1u8; 9].into_boxed_slice(), EmptyTuple(),
        vec![Wrapping(3u8); 9], vec![NonZeroU8::MIN; 9], vec![Some(3u8); 9], vec![Some(ByteBuf::from([1; 9])); 9], CString::new("c").unwrap(), vec![true; 9], vec!['x'; 9],
    ];
    odd_keys: carried [
        BTreeMap::from([(External::Unit, 1), (External::Newtype(3), 2), (External::Struct { value: 4 }, 3)]),
        BTreeMap::from([((1u8, "a".to_string()), ()), ((2, String::new()), ())]), BTreeMap::from([([1u8; 9], 1)]),
        BTreeMap::from([(Key { x: -1, y: None }, Unit), (Key { x: 2, y: Some('y') }, Unit)]),
        BTreeMap::from([(None, 1), (Some(None), 2), (Some(Some(3u8)), 3)]), BTreeMap::from([((), 1)]),
        BTreeMap::from([(Unit, 1)]), BTreeMap::from([(false, 1), (true, 2)]), BTreeMap::from([(f64::NAN.to_bits(), 1)]),
        BTreeMap::from([(u128::MAX, i128::MIN), (0, 0)]), BTreeMap::from([('x', 'y')]), BTreeMap::from([(vec![1u8; 9], 1)]),
        HashMap::from([(Some(()), ()), (None, ())]), BTreeMap::from([(BTreeMap::from([(1, 2)]), 3)]),
    ];
    enums: carried [
        vec![External::None(), External::Newtype(())], vec![External::<u8>::Unit; 9], Some(External::<()>::Unit),
        Internal::<u8>::Unit, Some(Internal::<u8>::Unit), Internal::Newtype(Struct { a: 1, own: Some(None::<()>), last: None }),
        Adjacent::<()>::Unit, Adjacent::Newtype(()), Adjacent::Newtype(None::<()>), Adjacent::Newtype(Some(None::<u8>)),
        Adjacent::Struct { value: u128::MAX }, Adjacent::Newtype(u128::MAX), Adjacent::Tuple(Some(Unit), 1),
        Untagged::<u8>::Text("x".into()), Untagged::<u8>::Unit, Some(Untagged::<u8>::Unit), None::<Untagged<u8>>,
        vec![Some(Untagged::<u8>::Unit), None], Untagged::Pair { left: Some(Unit), right: Some(None) },
    ];
    flattened: carried [
        Flattened { first: 1, tagged: Internal::Unit, variant: External::Newtype(Some(None)), perhaps: None },
        Flattened {
            first: u64::MAX, tagged: Internal::Struct { value: Some(()) }, variant: External::Tuple(None, 1),
            perhaps: Some(Key { x: 1, y: Some('y') }),
        },
        Flattened {
            first: 0, tagged: Internal::Newtype(Struct { a: 1, own: None, last: Some(Some(())) }),
            variant: External::Struct { value: Some(Some(1)) }, perhaps: Some(Key { x: 1, y: None }),
        },
    ];
    left_out_fields: carried [
        Sparse::default(), Sparse { a: Some(1), d: Some(Some(())), ..Sparse::default() },
        Sparse { b: vec![1; 9], d: Some(None), ..Sparse::default() },
        Sparse { e: HashMap::from([("x".into(), None), ("y".into(), Some(None)), ("z".into(), Some(Some(1)))]), ..Sparse::default() },
    ];
}

/// Text for humans, bytes for others, as the well-known identifiers do it.
#[derive(PartialEq, Debug, Clone)]
struct Id([u8; 4]);

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(&u32::from_be_bytes(self.0)),
            false => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = match deserializer.is_human_readable() {
            true => String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?,
            false => u32::from_be_bytes(Deserialize::deserialize(deserializer)?),
        };
        Ok(Id(number.to_be_bytes()))
    }
}

#[test]
fn floats_keep_every_bit() {
    for bits in
        [0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001, 0x8000_0000_0000_0000, 0x7ff0_0000_0000_0000, 1u64]
    {
        let (long, short) = (f64::from_bits(bits), f32::from_bits((bits >> 32) as u32 | 1));
        let sent = (long, vec![Some(short)], Untagged::Tuple(long, -0.0));
        type Sent = (f64, Vec<Option<f32>>, Untagged<f64>);
        let back: Sent = decode(&encode(&sent).unwrap()).unwrap();
        let (a, b, Untagged::Tuple(c, d)) = back else { panic!("{back:?} came back") };
        assert_eq!((a.to_bits(), b[0].map(f32::to_bits)), (bits, Some(short.to_bits())));
        assert_eq!((c.to_bits(), d.to_bits()), (bits, 1 << 63));
    }
}

#[test]
#[cfg(unix)]
fn names_that_are_not_text_are_carried_or_refused() {
    use std::os::unix::ffi::OsStringExt;
    let name = std::ffi::OsString::from_vec(vec![b'a', 255, 254, 0, 1, 2, 3, 4, 5]);
    carried_anywhere(name.clone());
    let error = encode(&std::path::PathBuf::from(name)).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

/// Announces a length, and then has these elements.
struct Announced(Option<usize>, Vec<Value>);

impl Serialize for Announced {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(self.0)?;
        self.1.iter().try_for_each(|value| match value.as_u64() {
            Some(number) if number < 256 => seq.serialize_element(&(number as u8)),
            _ => seq.serialize_element(value),
        })?;
        seq.end()
    }
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(untagged)]
enum Mixed {
    Number(u8),
    Text(String),
    Many(Vec<Mixed>),
}

#[test]
fn numbers_among_other_elements_are_carried() {
    for count in [0, 1, 7, 8, 9, 1023, 1024, 1025, 1026, 3000] {
        let mut elements = vec![Mixed::Number(200); count];
        carried(elements.clone());
        elements.push(Mixed::Many(elements.clone()));
        elements.extend(vec![Mixed::Number(3); 20]);
        carried(elements.clone());
        elements[count] = Mixed::Text("x".into());
        carried(elements.clone());
        carried(elements.into_iter().map(Newtype).collect::<LinkedList<_>>());
    }
}

#[test]
fn the_elements_count_and_not_the_announced_length() {
    for announced in [None, Some(0), Some(3), Some(8), Some(100), Some(100_000)] {
        for (count, other) in [(0, 0), (1, 0), (9, 0), (300, 0), (9, 5), (0, 20), (0, 70_000), (70_000, 1)] {
            let mut values = vec![json!(200); count];
            values.extend(vec![json!("x"); other]);
            values.extend(vec![json!(3); other.min(9)]);
            let bytes = encode(&(Announced(announced, values.clone()), "next")).unwrap();
            assert_eq!(decode::<(Vec<Value>, String)>(&bytes).unwrap(), (values, "next".to_string()));
        }
    }
}

#[test]
fn a_large_string_is_in_memory_when_it_is_to_cross() {
    let is_elsewhere = |length| {
        let encoded = encode_to_cross(&(1u8, "x".repeat(length), vec![3u8; 9])).unwrap();
        matches!(encoded, Encoded::Elsewhere(_))
    };
    assert!(is_elsewhere(DIRECT) && !is_elsewhere(DIRECT - 1));
    // What is written over when the string is in the file already: as much, more, less.
    for announced in [None, Some(0), Some(3), Some(8), Some(100), Some(100_000)] {
        for count in [0, 1, 2, 9, 300] {
            let mut values = vec![json!(200); count];
            values.push(json!("x".repeat(DIRECT)));
            values.extend([json!(3), json!("y".repeat(DIRECT)), json!("z")]);
            let value = (Announced(announced, values.clone()), "w".repeat(DIRECT), "next");
            let crossing = encode_to_cross(&value).unwrap();
            let bytes = crossing.bytes().unwrap();
            assert!(*bytes == encode(&value).unwrap());
            let back: (Vec<Value>, String, String) = decode(&bytes).unwrap();
            assert!(back == (values, "w".repeat(DIRECT), "next".to_owned()));
        }
    }
}

#[test]
fn asymmetric_types_are_read_where_serde_allows_it() {
    let nine = vec![1u8; 9];
    assert_eq!(decode::<ByteBuf>(&encode(&nine).unwrap()).unwrap(), nine);
    assert_eq!(decode::<Vec<u8>>(&encode(&ByteBuf::from(nine.clone())).unwrap()).unwrap(), nine);
    assert_eq!(decode::<Vec<Option<u8>>>(&encode(&nine).unwrap()).unwrap(), vec![Some(1); 9]);
    assert_eq!(decode::<Option<u8>>(&encode(&5u8).unwrap()).unwrap(), Some(5));
    assert_eq!(decode::<u8>(&encode(&Some(5u8)).unwrap()).unwrap(), 5);
    assert_eq!(decode::<u128>(&encode(&5u8).unwrap()).unwrap(), 5);
    assert_eq!(decode::<Unit>(&encode(&()).unwrap()).unwrap(), Unit);
    decode::<IgnoredAny>(&encode(&(Some(Some(())), u128::MAX, &nine, Some(None::<u8>))).unwrap()).unwrap();
}

#[test]
fn what_cannot_be_right_is_refused() {
    assert!(decode::<u8>(&encode(&Some(Some(5u8))).unwrap()).is_err());
    assert!(decode::<()>(&encode(&Some(())).unwrap()).is_err());
    assert!(decode::<Option<Option<u8>>>(&encode(&Some(5u8)).unwrap()).is_err());
    assert!(decode::<[u8; 8]>(&encode(&[1u8; 9]).unwrap()).is_err());
    assert!(decode::<[u8; 9]>(&encode(&[1u8; 8]).unwrap()).is_err());
    assert!(decode::<u64>(&encode(&u128::MAX).unwrap()).is_err());
    // serde buffers no integers of 128 bits: an error, even where another variant would take 16 bytes or text.
    let text = u128::from_be_bytes(*b"sixteen bytes ok");
    let buffered = decode::<Untagged<u128>>(&encode(&Untagged::Tuple(text, text)).unwrap());
    assert!(buffered.as_ref().unwrap_err().to_string().contains("as u128"), "{buffered:?}");
    assert!(decode::<BytesOrNumber>(&encode(&BytesOrNumber::Number(text)).unwrap()).is_err());
    let extension = Newtype::<(i8, ByteBuf)>((1, ByteBuf::new()));
    assert!(encode(&Extension(extension.0)).unwrap_err().to_string().contains("extension"));
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(untagged)]
pub(super) enum BytesOrNumber {
    Text(String),
    Bytes(ByteBuf),
    Number(u128),
}

#[derive(Serialize)]
#[serde(rename = "_ExtStruct")]
struct Extension((i8, ByteBuf));
