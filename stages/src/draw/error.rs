//! What keeps a figure from being drawn.

/// Why a figure cannot be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is nothing to show.
    #[error("{0} has nothing to show")]
    Empty(&'static str),
    /// An image whose bytes do not fit its size.
    #[error("image {column} of row `{row}` has {found} bytes, {height}×{width}×{channels} needs {needed}")]
    Size {
        /// Name of the row.
        row: String,
        /// Index in the row.
        column: usize,
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        needed: usize,
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Channels.
        channels: usize,
    },
    /// An image that is neither grey nor RGB, or has no pixels.
    #[error("image {column} of row `{row}` is {height}×{width}×{channels}; a sheet shows grey (1 channel) and RGB (3 channels) images")]
    Shape {
        /// Name of the row.
        row: String,
        /// Index in the row.
        column: usize,
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Channels.
        channels: usize,
    },
    /// A panel that does not have one row of images a name.
    #[error("panel `{heading}` has {found} rows of images for {names} row names")]
    Rows {
        /// Heading of the panel.
        heading: String,
        /// Rows found.
        found: usize,
        /// Row names given.
        names: usize,
    },
    /// A value that has no place on an axis.
    #[error("row `{row}` has the value {value}, which has no place on an axis")]
    NotFinite {
        /// Name of the row.
        row: String,
        /// The value, as text (NaN compares to nothing).
        value: String,
    },
    /// A figure larger than an image can be.
    #[error("a figure of {width}×{height} pixels is too large; show fewer rows or columns")]
    TooLarge {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
    },
    /// The SVG or PNG library refused; a defect of this module rather than of its input.
    #[error("cannot draw the figure: {0}")]
    Backend(String),
}
