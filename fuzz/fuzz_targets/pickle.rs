//! Any bytes as a pickle: nothing panics, what is kept is bounded by the bytes, and what was read refers to nothing outside of itself.
#![no_main]

// The module alone: as a dependency its crate would bring candle along, which takes minutes to compile.
#[path = "../../stages/src/pickle/mod.rs"]
#[allow(dead_code)]
mod pickle;

use libfuzzer_sys::fuzz_target;
use pickle::{Heap, Node, Value, read};

fuzz_target!(|bytes: &[u8]| {
    let Ok(found) = read(bytes) else { return };
    assert!(found.length <= bytes.len());
    let heap = &found.heap;
    assert!(heap.len() <= bytes.len(), "{} nodes of {} bytes", heap.len(), bytes.len());
    inside(heap, found.root);
    let mut items = 0;
    for i in 0..heap.len() {
        items += check(heap, heap.node(Value::Node(i)).expect("a node"));
    }
    // Each byte adds an item at most; the rest are copies, of which there is an allowance.
    assert!(items <= 10 * bytes.len() + 1024, "{items} items of {} bytes", bytes.len());
    // What follows it is not looked at.
    let again = read(&bytes[..found.length]).expect("the same pickle");
    assert_eq!((again.length, again.heap.len()), (found.length, heap.len()));
});

fn inside(heap: &Heap<'_>, value: Value) {
    if let Value::Node(i) = value {
        assert!(i < heap.len(), "node {i} of {}", heap.len());
    }
}

/// Holds a node to what its readers take for granted; gives how much it keeps.
fn check(heap: &Heap<'_>, node: &Node<'_>) -> usize {
    match node {
        Node::List(items) => {
            items.iter().for_each(|value| inside(heap, *value));
            items.len()
        }
        Node::Dict(entries) => {
            entries.iter().for_each(|(key, value)| [key, value].into_iter().for_each(|value| inside(heap, *value)));
            2 * entries.len()
        }
        Node::Tensor(view) => {
            let Some(Node::Storage { count, .. }) = heap.node(Value::Node(view.storage)) else { panic!("a tensor without a storage") };
            assert_eq!(view.shape.len(), view.strides.len());
            let size = view.shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n)).expect("a size");
            assert!(size <= *count);
            if size > 0 {
                let last = view.shape.iter().zip(&view.strides).fold(view.offset, |at, (n, stride)| at + (n - 1) * stride);
                assert!(last < *count, "element {last} of {count}");
            }
            2 * view.shape.len()
        }
        Node::Array(Some(array)) => {
            let size = array.shape.iter().try_fold(array.number.size(), |product, n| product.checked_mul(*n));
            assert_eq!(size, Some(array.bytes.len()));
            array.shape.len()
        }
        Node::Text(_) | Node::Bytes(_) | Node::Long(_) | Node::Storage { .. } | Node::Type { .. } | Node::Array(None) => 0,
    }
}
