//! The deepest values, and bytes that nobody encoded: errors, never a panic, an overflow or a heap of memory.

use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::SystemTime;

use super::tests::{Adjacent, Buffered, Flattened, Unit, Untagged, carried};
use super::{DEPTH, SOME, decode, encode};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
enum Tree {
    Leaf,
    Boxed(Box<Tree>),
    Many(Vec<Tree>),
    Named { left: Option<Box<Tree>>, data: Vec<u8> },
    Pair(Box<Tree>, i128),
    Map(BTreeMap<String, Tree>),
    Twice(Option<Option<Box<Tree>>>),
    Float(Option<u32>, BTreeMap<Option<u8>, Option<()>>),
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct List(Option<Box<List>>);

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Node {
    text: String,
    next: Option<Box<Node>>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(untagged)]
enum Either {
    Number(u8),
    Deeper { next: Box<Either> },
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(tag = "kind")]
enum Tagged {
    End,
    Deeper { next: Box<Tagged> },
}

/// The deepest value that is encoded is decoded, too, on half the stack of a Rust thread (the other half is for
/// larger types than these); one level more is an error.
fn fits<T>(first: fn() -> T, deeper: fn(T) -> T, levels: usize)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let run = move || {
        let deepest = (0..levels).fold(first(), |inner, _| deeper(inner));
        let bytes = encode(&deepest).unwrap();
        assert!(decode::<T>(&bytes).unwrap() == deepest);
        decode::<IgnoredAny>(&bytes).unwrap();
        let error = encode(&(0..=levels).fold(first(), |inner, _| deeper(inner))).unwrap_err();
        assert!(error.to_string().contains("nested deeper than 128 levels"), "{error}");
        assert!(encode(&(0..300).fold(first(), |inner, _| deeper(inner))).is_err());
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn the_deepest_values_fit_on_a_small_stack() {
    fits(|| Tree::Leaf, |inner| Tree::Boxed(inner.into()), DEPTH);
    fits(|| Tree::Leaf, |inner| Tree::Pair(inner.into(), 1), DEPTH / 2);
    fits(|| Tree::Leaf, |inner| Tree::Many(vec![inner]), DEPTH / 2);
    fits(|| Tree::Leaf, |inner| Tree::Named { left: Some(inner.into()), data: vec![] }, DEPTH / 2 - 1);
    fits(|| Tree::Leaf, |inner| Tree::Map(BTreeMap::from([("key".into(), inner)])), DEPTH / 2);
    fits(|| Tree::Leaf, |inner| Tree::Twice(Some(Some(inner.into()))), DEPTH / 2);
    fits(|| List(None), |inner| List(Some(inner.into())), DEPTH);
    fits(
        || Node { text: "x".into(), next: None },
        |inner| Node { text: "y".into(), next: Some(inner.into()) },
        DEPTH - 1,
    );
    fits(|| Either::Number(1), |inner| Either::Deeper { next: inner.into() }, DEPTH);
    fits(|| Tagged::End, |inner| Tagged::Deeper { next: inner.into() }, DEPTH - 1);
    fits(|| json!(true), |inner| json!([inner]), DEPTH);
    fits(|| json!(true), |inner| json!({ "key": inner }), DEPTH);
}

/// Decodes as types of every kind; what comes out, if anything, encodes again.
fn try_all(bytes: &[u8]) {
    fn one<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        if let Ok(value) = decode::<T>(bytes) {
            encode(&value).unwrap();
        }
    }
    one::<Tree>(bytes);
    one::<List>(bytes);
    one::<Node>(bytes);
    one::<Either>(bytes);
    one::<Tagged>(bytes);
    one::<Value>(bytes);
    one::<Vec<u8>>(bytes);
    one::<[u8; 16]>(bytes);
    one::<Vec<Option<Option<()>>>>(bytes);
    one::<(i128, char, f32, ByteBuf)>(bytes);
    one::<BTreeMap<Option<u8>, IpAddr>>(bytes);
    one::<Flattened>(bytes);
    one::<Buffered<Option<Option<u8>>>>(bytes);
    one::<Adjacent<Untagged<Unit>>>(bytes);
    one::<Vec<Result<SystemTime, BinaryHeap<u16>>>>(bytes);
    let _ = decode::<IgnoredAny>(bytes);
}

#[test]
fn hostile_bytes_neither_overflow_the_stack_nor_exhaust_memory() {
    let run = || {
        for level in
            [&[0x91][..], b"\x81\xa1x", b"\x81\xa5Boxed", b"\x81\xa4Many\x91", b"\x81\xa4next", b"\x81\xc0"]
        {
            try_all(&level.repeat(100_000));
            try_all(&[&level.repeat(100)[..], &[0xc0]].concat());
        }
        // Lengths far beyond the input, alone and nested.
        for header in [
            &[0xdd, 255, 255, 255, 255][..],
            &[0xdf, 255, 255, 255, 255],
            &[0xdc, 255, 255],
            &[0xde, 255, 255],
        ] {
            try_all(&header.repeat(1_000));
        }
        let error = decode::<Vec<()>>(&[0xdd, 255, 255, 255, 255]).unwrap_err();
        assert!(error.to_string().contains("4294967295 parts are announced"), "{error}");
        for marker in [0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xd9, 0xda, 0xdb] {
            try_all(&[marker, 255, 255, 255, 255, 155]);
        }
        // Marks in marks.
        let mut bytes = vec![0xc0];
        for _ in 0..2_000 {
            let len = (bytes.len() as u32).to_be_bytes();
            bytes = [&[0xc9][..], &len, &[SOME.to_be_bytes()[0]], &bytes].concat();
        }
        try_all(&bytes);
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Leaf),
        Just(Tree::Twice(None)),
        Just(Tree::Twice(Some(None))),
        (any::<Option<u32>>(), any::<BTreeMap<Option<u8>, Option<()>>>())
            .prop_map(|(a, b)| Tree::Float(a, b)),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Boxed(tree.into())),
            prop::collection::vec(inner.clone(), 0..12).prop_map(Tree::Many),
            (inner.clone(), any::<Vec<u8>>())
                .prop_map(|(tree, data)| Tree::Named { left: Some(tree.into()), data }),
            (inner.clone(), any::<i128>()).prop_map(|(tree, number)| Tree::Pair(tree.into(), number)),
            prop::collection::btree_map(any::<String>(), inner.clone(), 0..4).prop_map(Tree::Map),
            inner.prop_map(|tree| Tree::Twice(Some(Some(tree.into())))),
        ]
    })
}

proptest! {
    #[test]
    fn any_tree_is_carried(tree in tree()) {
        carried(vec![Some(tree)]);
    }

    #[test]
    fn any_bytes_are_harmless(bytes in any::<Vec<u8>>()) {
        try_all(&bytes);
    }

    #[test]
    fn damaged_values_are_harmless(
        tree in tree(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut: bool
    ) {
        let mut bytes = encode(&tree).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(if cut { at } else { bytes.len() });
        try_all(&bytes);
    }
}
