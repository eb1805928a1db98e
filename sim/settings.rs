//! Structs of settings that a document and a command line can name.

use crate::choices::Ratio;

/// A setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No setting is called that.
    #[error("no setting is called {0}")]
    Unknown(String),
    /// The value does not fit.
    #[error("{key}: expected {expected}, got {got}")]
    Value {
        /// Which setting.
        key: String,
        /// What would fit.
        expected: &'static str,
        /// What came.
        got: String,
    },
}

/// A value as it is written in a document.
pub trait Value: Sized {
    /// What can be written, in words.
    const EXPECTED: &'static str;
    /// Read it; `None` if it does not fit.
    fn parse(text: &str) -> Option<Self>;
    /// Write it, so that `parse` reads the same.
    fn print(&self) -> String;
}

macro_rules! whole {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            const EXPECTED: &'static str = "a whole number";
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn print(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole!(u16, u32, u64);

impl Value for bool {
    const EXPECTED: &'static str = "on or off";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        }
    }

    fn print(&self) -> String {
        (if *self { "on" } else { "off" }).into()
    }
}

impl Value for Ratio {
    const EXPECTED: &'static str = "never or a fraction such as 1/20";

    fn parse(text: &str) -> Option<Self> {
        if text == "never" {
            return Some(Self::NEVER);
        }
        let (num, den) = text.split_once('/')?;
        let (num, den) = (num.parse().ok()?, den.parse().ok()?);
        (num <= den && den > 0).then_some(Self { num, den })
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Value for Option<u64> {
    const EXPECTED: &'static str = "none or a whole number";

    fn parse(text: &str) -> Option<Self> {
        if text == "none" { Some(None) } else { text.parse().ok().map(Some) }
    }

    fn print(&self) -> String {
        self.map_or("none".into(), |n| n.to_string())
    }
}

/// Define a struct whose fields can be read and written by name.
macro_rules! settings {
    (
        $(#[$doc:meta])*
        pub struct $Name:ident {
            $($(#[$field_doc:meta])* $key:ident: $ty:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Name {
            $($(#[$field_doc])* pub $key: $ty,)*
        }

        impl $Name {
            /// Every setting by name, as a document has it.
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($key), $crate::settings::Value::print(&self.$key)),)*]
            }

            /// Change one by name.
            ///
            /// # Errors
            /// If there is none of that name, or the value does not fit.
            pub fn set(&mut self, key: &str, text: &str) -> Result<(), $crate::settings::SettingError> {
                match key {
                    $(stringify!($key) => {
                        self.$key = $crate::settings::Value::parse(text).ok_or_else(|| {
                            $crate::settings::SettingError::Value {
                                key: key.into(),
                                expected: <$ty as $crate::settings::Value>::EXPECTED,
                                got: text.into(),
                            }
                        })?;
                        Ok(())
                    })*
                    _ => Err($crate::settings::SettingError::Unknown(key.into())),
                }
            }
        }
    };
}
pub(crate) use settings;
