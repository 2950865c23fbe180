//! The bar a progress is drawn on, or nothing without the feature.

#[cfg(feature = "indicatif")]
pub(crate) use with::Bar;
#[cfg(not(feature = "indicatif"))]
pub(crate) use without::Bar;

#[cfg(feature = "indicatif")]
mod with {
    use indicatif::ProgressBar;

    #[derive(Debug, Default)]
    pub(crate) struct Bar(Option<ProgressBar>);

    impl Bar {
        pub(crate) const fn new(bar: ProgressBar) -> Self {
            Self(Some(bar))
        }

        pub(crate) fn begin(&self, total: Option<usize>) {
            if let Some(bar) = &self.0 {
                match total {
                    Some(total) => bar.set_length(total as u64),
                    None => bar.unset_length(),
                }
            }
        }

        /// An item has ended; if it failed, it is the n-th that did.
        pub(crate) fn ended(&self, failed: Option<usize>) {
            if let Some(bar) = &self.0 {
                bar.inc(1);
                if let Some(failed) = failed {
                    bar.set_message(format!("{failed} failed"));
                }
            }
        }

        /// The last gather has ended: at its natural end, or before.
        pub(crate) fn finish(&self, natural: bool) {
            if let Some(bar) = &self.0 {
                if natural {
                    bar.finish_using_style();
                } else {
                    // As far as it came: finishing would show all of it as done.
                    bar.abandon();
                }
            }
        }
    }
}

#[cfg(not(feature = "indicatif"))]
mod without {
    #[derive(Debug, Default)]
    pub(crate) struct Bar;

    impl Bar {
        pub(crate) const fn begin(&self, _: Option<usize>) {}
        pub(crate) const fn ended(&self, _: Option<usize>) {}
        pub(crate) const fn finish(&self, _: bool) {}
    }
}
