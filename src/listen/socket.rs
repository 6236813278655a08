pub use crate::listen::listener::{BindError, ListenOptions, somaxconn};
