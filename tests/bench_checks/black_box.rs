//! The benchmark as users start it.
