//! The parameters that the training stages share.

/// Defines a stage's parameters: those of every training, then its own with their defaults.
macro_rules! training_params {
    ($(#[$doc:meta])* $name:ident { $($(#[$own_doc:meta])* $own:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_doc])* pub $own: $type,)*
            /// Passes over the data; without `epochs` and `steps`, 10.
            pub epochs: Option<f64>,
            /// Updates of the weights, instead of `epochs`.
            pub steps: Option<usize>,
            /// Images of one step.
            pub batch: usize,
            /// Largest learning rate of AdamW; it rises over `warmup` and then falls along a cosine.
            pub lr: f64,
            /// Share of the steps over which the learning rate rises.
            pub warmup: f64,
            /// AdamW's decay of weights.
            pub weight_decay: f64,
            /// α of mixup's Beta(α, α); 0 is off.
            pub mixup: f64,
            /// Share of the target that is spread over all classes.
            pub label_smoothing: f64,
            /// Random changes of the images.
            pub augment: $crate::train::Augment,
            /// Seed of the initial weights, the order, mixup and the augmentation, each with its own stream.
            pub seed: u64,
        }

        impl Default for $name {
            fn default() -> Self {
                let recipe = $crate::train::Recipe::default();
                Self {
                    $($own: $default,)*
                    epochs: None,
                    steps: None,
                    batch: recipe.batch,
                    lr: recipe.lr,
                    warmup: recipe.warmup,
                    weight_decay: recipe.weight_decay,
                    mixup: recipe.mixup,
                    label_smoothing: recipe.label_smoothing,
                    augment: recipe.augment,
                    seed: 0,
                }
            }
        }

        impl $name {
            fn recipe(&self) -> $crate::train::Recipe {
                $crate::train::Recipe {
                    length: $crate::train::Length::of(self.epochs, self.steps),
                    batch: self.batch,
                    lr: self.lr,
                    warmup: self.warmup,
                    weight_decay: self.weight_decay,
                    mixup: self.mixup,
                    label_smoothing: self.label_smoothing,
                    augment: self.augment,
                }
            }

            fn complaints(&self) -> Vec<trestle_engine::stage::ParamError> {
                let mut errors = self.recipe().check();
                if self.epochs.is_some() && self.steps.is_some() {
                    errors.push(trestle_engine::stage::ParamError::new("steps", "`epochs` and `steps` both say how long to train; keep one"));
                }
                errors
            }
        }
    };
}

pub(crate) use training_params;
