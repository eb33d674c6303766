//! Image sets made of other sets without copying an image.

use std::sync::Arc;

use super::image_set::Meta;
use super::stored::{Images, expect};
use crate::error::{Error, Result};

/// Images of other sets, in an order of its own.
#[derive(Debug)]
pub struct View {
    sets: Vec<Arc<dyn Images>>,
    /// Of each image the set that it is of, and its place there.
    places: Vec<(usize, usize)>,
    labels: Vec<u32>,
    meta: Meta,
}

impl View {
    /// The images of `set` at `indices`, in that order.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn select(set: Arc<dyn Images>, indices: &[usize]) -> Result<Self> {
        set.check_indices(indices)?;
        let meta = set.meta().clone();
        Ok(Self::new(vec![set], indices.iter().map(|&index| (0, index)).collect(), meta))
    }

    /// `first` followed by `second`; they have no styles.
    ///
    /// # Errors
    /// If sizes or classes differ.
    pub fn join(first: Arc<dyn Images>, second: Arc<dyn Images>) -> Result<Self> {
        let meta = Meta { styles: None, ..first.meta().joined(second.meta()).map_err(Error::Argument)? };
        let places = [&first, &second].into_iter().enumerate().flat_map(|(of, set)| (0..set.len()).map(move |index| (of, index))).collect();
        Ok(Self::new(vec![first, second], places, meta))
    }

    fn new(sets: Vec<Arc<dyn Images>>, places: Vec<(usize, usize)>, meta: Meta) -> Self {
        let labels = places.iter().map(|&(of, index)| sets[of].labels()[index]).collect();
        let meta = Meta { count: places.len(), ..meta };
        Self { sets, places, labels, meta }
    }
}

impl Images for View {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()> {
        expect(index, &self.meta, out)?;
        let (of, place) = self.places[index];
        self.sets[of].copy(place, out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::{ImageSet, Normalisation, Stored};

    fn set(first: u8, count: u8) -> ImageSet {
        let images = (0..count).flat_map(|i| [first + i; 12]).collect();
        let names = ["a", "b"].map(str::to_owned).to_vec();
        ImageSet::new(images, (0..count).map(|i| u32::from(i % 2)).collect(), (2, 2, 3), names, "test").unwrap()
    }

    fn stored(set: &ImageSet) -> (tempfile::TempDir, Arc<dyn Images>) {
        let dir = tempfile::tempdir().unwrap();
        set.write(dir.path()).unwrap();
        let stored = Arc::new(Stored::open(dir.path()).unwrap());
        (dir, stored)
    }

    /// Labels, description but for styles, and pixels.
    fn same(a: &dyn Images, b: &dyn Images) {
        assert_eq!((a.labels(), a.meta()), (b.labels(), b.meta()));
        let all: Vec<usize> = (0..a.len()).collect();
        let floats = |set: &dyn Images| set.to_f32(&all, Normalisation::Signed).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(floats(a), floats(b));
    }

    #[test]
    fn views_of_stored_sets_are_the_sets_in_memory() {
        let (a, b) = (set(0, 5), set(100, 4));
        let ((_dir, on_disk), (_other, more)) = (stored(&a), stored(&b));
        same(on_disk.as_ref(), &a);
        same(&View::select(on_disk.clone(), &[3, 0, 3]).unwrap(), &a.subset(&[3, 0, 3]).unwrap());
        let both = a.concat(&b).unwrap();
        let joined: Arc<dyn Images> = Arc::new(View::join(on_disk.clone(), more).unwrap());
        same(joined.as_ref(), &both);
        same(&View::select(joined.clone(), &[8, 1, 5]).unwrap(), &both.subset(&[8, 1, 5]).unwrap());
        assert!(View::select(joined.clone(), &[9]).unwrap_err().to_string().contains("image 9 of a set of 9"));
        assert!(joined.copy(9, &mut [0; 12]).unwrap_err().to_string().contains("image 9 of a set of 9"));
        let other = Arc::new(ImageSet::new(vec![0], vec![0], (1, 1, 1), a.meta.classes.clone(), "test").unwrap());
        assert!(View::join(on_disk, other).unwrap_err().to_string().contains("do not go into one set"));
    }
}
