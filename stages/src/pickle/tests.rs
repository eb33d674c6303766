#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10);
    files
}

fn refusal(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn values_of_every_protocol() {
    // pickle.dumps({"a": [1, -2, 3.5, None, True], b"b": (2**40, "é")}, 2) and 4.
    for bytes in [
        &b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG@\x0c\x00\x00\x00\x00\x00\x00N\x88eU\x01b\x8a\x06\x00\x00\x00\x00\x00\x01X\x02\x00\x00\x00\xc3\xa9\x86u."[..],
        &b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffG@\x0c\x00\x00\x00\x00\x00\x00N\x88eC\x01b\x94\x8a\x06\x00\x00\x00\x00\x00\x01\x8c\x02\xc3\xa9\x94\x86\x94u."[..],
    ] {
        let Pickle { heap, root, length } = read(bytes).unwrap();
        assert_eq!(length, bytes.len());
        let list = heap.list(heap.get(root, "a").unwrap()).unwrap();
        assert_eq!(list, [Value::Int(1), Value::Int(-2), Value::Float(3.5), Value::None, Value::Bool(true)]);
        let pair = heap.list(heap.get(root, "b").unwrap()).unwrap();
        assert_eq!((pair[0], heap.text(pair[1])), (Value::Int(1 << 40), Some("é")));
    }
    // Protocol 0.
    let Pickle { heap, root, .. } = read(b"(dp0\nS'a'\np1\nI-5\nsVb\nF0.25\nsS\"c\"\nI01\ns.").unwrap();
    assert_eq!(["a", "b", "c"].map(|key| heap.get(root, key).unwrap()), [Value::Int(-5), Value::Float(0.25), Value::Bool(true)]);
}

#[test]
fn nothing_runs() {
    for (bytes, name) in [
        (&b"cos\nsystem\n(S'touch x'\ntR."[..], "`os.system`"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "`builtins.eval`"),
        (b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93.", "`posix.system`"),
        (b"\x80\x02ctorch\nload\n.", "`torch.load`"),
        (b"\x80\x02cnumpy\nload\n.", "`numpy.load`"),
    ] {
        let message = refusal(bytes);
        assert!(message.contains(name) && message.contains("nothing was run"), "{message}");
    }
    // INST and OBJ call too, EXT asks a registry, BUILD sets attributes of whatever it is given, NEXT_BUFFER wants bytes from outside.
    for bytes in [&b"(ios\nsystem\n."[..], b"(cos\nsystem\no.", b"\x82\x01.", b"K\x01}b.", b"\x97."] {
        assert!(read(bytes).is_err());
    }
}

#[test]
fn damage_is_named_with_its_byte() {
    for (bytes, words) in [
        (&b""[..], "byte 0: 1 bytes are wanted, and 0 are left"),
        (b"\x80\x02}q", "byte 3: 1 bytes are wanted, and 0 are left"),
        (b"\x80\x09.", "byte 0: protocol 9"),
        (b"X\xff\xff\xff\x7fabc", "byte 0: 2147483647 bytes are wanted, and 3 are left"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc", "bytes are wanted, and 3 are left"),
        (b"h\x07.", "nothing was kept under 7"),
        (b"t.", "no mark"),
        (b"(.", "nothing is on the stack"),
        (b"K\x01K\x02s.", "nothing is on the stack"),
        (b"}(K\x01u.", "a key without its value"),
        (b"K\x01a.", "nothing is on the stack"),
        (b"\xff.", "instruction 0xff"),
        (b"K\x01Q.", "no storage of PyTorch"),
    ] {
        let message = refusal(bytes);
        assert!(message.contains(words), "{message} / {words}");
    }
}

#[test]
fn cycles_depth_and_copies_cost_nothing() {
    // A list that holds itself, and one nested a million times.
    let Pickle { heap, root, .. } = read(b"]q\x00h\x00a.").unwrap();
    assert_eq!(heap.list(root).unwrap(), [root]);
    let deep = [&b")"[..], &b"\x85".repeat(1_000_000), b"."].concat();
    assert_eq!(read(&deep).unwrap().heap.len(), 1_000_001);
    // A list of 10,000 numbers that a set is made of 10,000 times: 100 million values from 100 kB.
    let bomb = [&b"](".to_vec()[..], &b"K\x01".repeat(10_000), b"e\x85q\x00cbuiltins\nset\nq\x010", &b"h\x01h\x00R0".repeat(10_000), b"."]
        .concat();
    assert!(refusal(&bomb).contains("copies its own values"));
}

/// Opcodes are likelier than other bytes.
fn programs() -> impl Strategy<Value = Vec<u8>> {
    let opcodes = prop::sample::select(
        &b".(012NKMJILFGVXSUTCB]})aesutdlpqrghjcRbQ\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x93\x94\x95\x96"[..],
    );
    const NAMES: [&[u8]; 9] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"ccollections\nOrderedDict\n",
        b"c_codecs\nencode\n",
        b"X\x07\x00\x00\x00storage",
        b"X\x02\x00\x00\x00f4",
    ];
    let names = prop::sample::select(&NAMES[..]);
    prop::collection::vec(
        prop_oneof![8 => opcodes.prop_map(|b| vec![b]), 2 => any::<u8>().prop_map(|b| vec![b]), 2 => names.prop_map(<[u8]>::to_vec)],
        0..200,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_end(bytes in programs()) {
        if let Ok(pickle) = read(&bytes) {
            prop_assert!(pickle.length <= bytes.len());
            prop_assert!(pickle.heap.len() <= bytes.len());
        }
    }

    #[test]
    fn damaged_files_end(file in prop::sample::select(fixtures()), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut bytes = std::fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = crate::model::weights::File::open(&path, None) {
            let names: Vec<String> = file.names().map(str::to_owned).collect();
            for name in names {
                let _ = file.tensor(&name);
            }
        }
    }
}
