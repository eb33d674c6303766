//! Where windows over an image lie, as tables of places: what one `index_select` gathers, zeros of the padding included.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Result, Tensor};

/// candle gives zeros for this index, on the CPU and on a GPU.
const NOWHERE: u32 = u32::MAX;
/// Tables that are kept on a device; more than any model has.
const KEPT: usize = 512;

/// Windows over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Taps {
    /// Height and width of the image.
    pub image: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Steps from window to window.
    pub stride: [usize; 2],
    /// Places above and to the left of the image.
    pub pad: [usize; 2],
    /// Windows down and across.
    pub out: [usize; 2],
}

/// From results to the image, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// For every window and tap the place in the image.
    Forward,
    /// For every place of the image and tap the window that saw it through this tap.
    Back,
}

thread_local! {
    /// By windows, way and order. A process works on one device, so a device is not part of the key, but looked at.
    static TABLES: RefCell<HashMap<(Taps, Way, bool), Tensor>> = RefCell::new(HashMap::new());
}

impl Taps {
    /// Places of a window.
    pub fn count(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Places of the image.
    pub fn places(&self) -> usize {
        self.image[0] * self.image[1]
    }

    /// Windows.
    pub fn windows(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Whether every window is the place of its number.
    pub fn is_identity(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pad == [0, 0] && self.out == self.image
    }

    /// Along one side: the place under tap `k` of window `i`.
    fn under(&self, side: usize, i: usize, k: usize) -> Option<usize> {
        (i * self.stride[side] + k).checked_sub(self.pad[side]).filter(|place| *place < self.image[side])
    }

    /// Along one side: the window whose tap `k` lies on place `i`.
    fn over(&self, side: usize, i: usize, k: usize) -> Option<usize> {
        let from = (i + self.pad[side]).checked_sub(k)?;
        let window = from / self.stride[side];
        (from.is_multiple_of(self.stride[side]) && window < self.out[side]).then_some(window)
    }

    /// `[places][taps]`, or with `by_tap` `[taps][places]`.
    fn table(&self, way: Way, by_tap: bool) -> Vec<u32> {
        let (from, to) = match way {
            Way::Forward => (self.out, self.image),
            Way::Back => (self.image, self.out),
        };
        let along = |side: usize, i: usize, k: usize| match way {
            Way::Forward => self.under(side, i, k),
            Way::Back => self.over(side, i, k),
        };
        let entry = |place: usize, tap: usize| {
            let row = along(0, place / from[1], tap / self.kernel[1]);
            let column = along(1, place % from[1], tap % self.kernel[1]);
            row.zip(column).map_or(NOWHERE, |(row, column)| (row * to[1] + column) as u32)
        };
        let (places, taps) = (from[0] * from[1], self.count());
        if by_tap {
            (0..taps).flat_map(|tap| (0..places).map(move |place| (place, tap))).map(|(place, tap)| entry(place, tap)).collect()
        } else {
            (0..places).flat_map(|place| (0..taps).map(move |tap| (place, tap))).map(|(place, tap)| entry(place, tap)).collect()
        }
    }

    fn kept(&self, way: Way, by_tap: bool, like: &Tensor) -> Result<Tensor> {
        let key = (*self, way, by_tap);
        let known = TABLES.with(|tables| tables.borrow().get(&key).cloned());
        if let Some(table) = known.filter(|table| table.device().same_device(like.device())) {
            return Ok(table);
        }
        let table = self.table(way, by_tap);
        let table = Tensor::from_vec(table.clone(), table.len(), like.device())?;
        TABLES.with(|tables| {
            let mut tables = tables.borrow_mut();
            if tables.len() >= KEPT {
                tables.clear();
            }
            tables.insert(key, table.clone());
        });
        Ok(table)
    }

    /// All taps of all windows: `x` `[n, places, c]` becomes `[n, windows · taps, c]` (or from windows back to places).
    pub fn gather(&self, x: &Tensor, way: Way) -> Result<Tensor> {
        x.index_select(&self.kept(way, false, x)?, 1)
    }

    /// One tap of all windows: `[n, places, c]` becomes `[n, windows, c]` (or from windows back to places).
    pub fn gather_tap(&self, x: &Tensor, way: Way, tap: usize) -> Result<Tensor> {
        let places = if way == Way::Forward { self.windows() } else { self.places() };
        x.index_select(&self.kept(way, true, x)?.narrow(0, tap * places, places)?, 1)
    }

    /// For one tap of all windows 0, or −∞ where it lies outside of the image: `[windows, 1]`; `None` if it never does.
    pub fn outside(&self, tap: usize, like: &Tensor) -> Result<Option<Tensor>> {
        let table = self.table(Way::Forward, true);
        let mine = &table[tap * self.windows()..][..self.windows()];
        if !mine.contains(&NOWHERE) {
            return Ok(None);
        }
        let floor: Vec<f32> = mine.iter().map(|place| if *place == NOWHERE { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(Some(Tensor::from_vec(floor, (self.windows(), 1), like.device())?.to_dtype(like.dtype())?))
    }
}
