//! Which workloads may ask, and about what.
