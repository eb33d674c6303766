//! Image sets made of other sets without copying an image.

use std::sync::Arc;

use super::image_set::Meta;
use super::stored::{Images, expect};
use crate::error::{Error, Result};

/// The images of another set at some places, in that order.
#[derive(Debug)]
pub struct Selected {
    set: Arc<dyn Images>,
    indices: Vec<usize>,
    labels: Vec<u32>,
    meta: Meta,
}

impl Selected {
    /// Those at `indices`.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn new(set: Arc<dyn Images>, indices: Vec<usize>) -> Result<Self> {
        set.check_indices(&indices)?;
        let labels = indices.iter().map(|&i| set.labels()[i]).collect();
        let meta = Meta { count: indices.len(), ..set.meta().clone() };
        Ok(Self { set, indices, labels, meta })
    }
}

impl Images for Selected {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()> {
        expect(index, &self.meta, out)?;
        self.set.copy(self.indices[index], out)
    }
}

/// Sets one after the other; they have no styles.
#[derive(Debug)]
pub struct Joined {
    first: Arc<dyn Images>,
    second: Arc<dyn Images>,
    labels: Vec<u32>,
    meta: Meta,
}

impl Joined {
    /// `first` followed by `second`.
    ///
    /// # Errors
    /// If sizes or classes differ.
    pub fn new(first: Arc<dyn Images>, second: Arc<dyn Images>) -> Result<Self> {
        let meta = Meta { styles: None, ..first.meta().joined(second.meta()).map_err(Error::Argument)? };
        let labels = [first.labels(), second.labels()].concat();
        Ok(Self { first, second, labels, meta })
    }
}

impl Images for Joined {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()> {
        expect(index, &self.meta, out)?;
        match index.checked_sub(self.first.len()) {
            None => self.first.copy(index, out),
            Some(index) => self.second.copy(index, out),
        }
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
        same(&Selected::new(on_disk.clone(), vec![3, 0, 3]).unwrap(), &a.subset(&[3, 0, 3]).unwrap());
        let both = a.concat(&b).unwrap();
        let joined: Arc<dyn Images> = Arc::new(Joined::new(on_disk.clone(), more).unwrap());
        same(joined.as_ref(), &both);
        same(&Selected::new(joined.clone(), vec![8, 1, 5]).unwrap(), &both.subset(&[8, 1, 5]).unwrap());
        assert!(Selected::new(joined.clone(), vec![9]).unwrap_err().to_string().contains("image 9 of a set of 9"));
        assert!(joined.copy(9, &mut [0; 12]).unwrap_err().to_string().contains("image 9 of a set of 9"));
        let other = Arc::new(ImageSet::new(vec![0], vec![0], (1, 1, 1), a.meta.classes.clone(), "test").unwrap());
        assert!(Joined::new(on_disk, other).unwrap_err().to_string().contains("do not go into one set"));
    }
}
