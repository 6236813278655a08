pub use crate::listen::listener::{Address, printable};
