//! Declaring and calling CUDA kernels.
//!
//! A family's kernels are declared once, in `src/ops/FAMILY.rs` (or a file of `src/ops/FAMILY/`):
//!
//! ```ignore
//! kernels! {
//!     /// 256 threads: why.
//!     fn scale(y: Out, x: In, dims: ScaleDims);
//!     fn adamw(weights: Out<f32>, gradients: In<T>, copies: Array<Out<U>, 2>, dims: AdamwDims);
//! }
//!
//! #[derive(Clone, Copy, NoUninit)]
//! #[repr(C)]
//! struct ScaleDims {
//!     len: u64,
//!     factor: f32,
//!     reserved: u32,
//! }
//! ```
//!
//! A parameter is a tensor that is read (`In`) or written (`Out`), up to N of them (`Array<In, N>`,
//! `Array<Out, N>`), or a `#[repr(C)]` struct by value. Between angle brackets stands the element type: one type
//! for all instantiations (`In<f32>`), or `T` or `U`, each of which is f32, f16 or bf16 as the tensors are; without
//! brackets it is `T`. `scale` above stands for the kernels `scale_f32`, `scale_f16` and `scale_bf16` of
//! `kernels/FAMILY.cu`, `adamw` for nine: `adamw_f32_bf16` has gradients in f32 and copies in bf16. A kernel without
//! `T` has its plain name.
//!
//! The macro makes a module `kernel` with a launcher for each. Of `scale`:
//!
//! ```ignore
//! mod kernel {
//!     use super::*;
//!
//!     /// 256 threads: why.
//!     pub(super) fn scale(config: LaunchConfig, y: &mut Tensor, x: &Tensor, dims: ScaleDims) -> Result<()> {
//!         let mut call = Call::new(&Names {
//!             plain: "scale",
//!             of_t: ["scale_f32", "scale_f16", "scale_bf16"],
//!             of_t_and_u: [["scale_f32_f32", "scale_f32_f16", ..], .., [.., "scale_bf16_bf16"]],
//!         });
//!         <Out as Param>::push(y, &mut call)?; // the address of `y`; its dtype is T from here on
//!         <In as Param>::push(x, &mut call)?; // an error when `x` is of another dtype, or on another device
//!         <ScaleDims as Param>::push(dims, &mut call)?; // 16 bytes
//!         call.launch(module_path!(), config) // scale_f32 when T is f32, out of kernels/FAMILY.cu
//!     }
//! }
//! ```
//!
//! so that the operation calls `kernel::scale(config, out, x, ScaleDims { .. })`. The build script reads the same
//! declarations (`build/contract/`) and holds them against the compiled kernels: names, order, types and struct
//! layouts. A kernel is written as a template and instantiated by `FOR_EACH_FLOAT` or `FOR_EACH_PAIR` of
//! `kernels/common.cuh`.

use std::marker::PhantomData;

use bytemuck::NoUninit;

pub(crate) use crate::tensor::cuda::LaunchConfig;

use crate::error::{Error, Result};
use crate::tensor::cuda::Args;
use crate::tensor::{DType, Element, Tensor};

#[cfg(test)]
#[path = "../../build/contract/mod.rs"]
mod contract;

/// A tensor that a kernel reads: `const T*`.
pub(crate) struct In<E = T>(PhantomData<E>);

/// A tensor that a kernel writes: `T*`.
pub(crate) struct Out<E = T>(PhantomData<E>);

/// Up to N tensors as one parameter: `Pointers<const T, N>` of `In`, `Pointers<T, N>` of `Out`.
pub(crate) struct Array<P, const N: usize>(PhantomData<P>);

/// Stands for the type that a kernel is instantiated for: f32, f16 or bf16.
pub(crate) struct T;

/// Stands for the second type of a kernel that is instantiated for pairs.
pub(crate) struct U;

/// What a declaration says of a parameter's elements.
#[derive(Clone, Copy)]
enum Elements {
    Fixed(DType),
    T,
    U,
}

/// An element type in a declaration.
trait Typed {
    const ELEMENTS: Elements;
}

impl<E: Element> Typed for E {
    const ELEMENTS: Elements = Elements::Fixed(E::DTYPE);
}

impl Typed for T {
    const ELEMENTS: Elements = Elements::T;
}

impl Typed for U {
    const ELEMENTS: Elements = Elements::U;
}

/// A parameter in a declaration, and what the launcher takes for it.
pub(crate) trait Param {
    type Value<'a>;
    fn push(value: Self::Value<'_>, call: &mut Call) -> Result<()>;
}

impl<E: Typed> Param for In<E> {
    type Value<'a> = &'a Tensor;
    fn push(tensor: &Tensor, call: &mut Call) -> Result<()> {
        let address = call.address::<E>(tensor)?;
        call.args.push(bytemuck::bytes_of(&address))
    }
}

impl<E: Typed> Param for Out<E> {
    type Value<'a> = &'a mut Tensor;
    fn push(tensor: &mut Tensor, call: &mut Call) -> Result<()> {
        let address = call.address_mut::<E>(tensor)?;
        call.args.push(bytemuck::bytes_of(&address))
    }
}

/// The places that are left hold null.
impl<E: Typed, const N: usize> Param for Array<In<E>, N> {
    type Value<'a> = &'a [&'a Tensor];
    fn push(tensors: &[&Tensor], call: &mut Call) -> Result<()> {
        let mut addresses = call.places::<N>(tensors.len())?;
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            *address = call.address::<E>(tensor)?;
        }
        call.args.push(bytemuck::cast_slice(&addresses))
    }
}

/// The places that are left hold null.
impl<E: Typed, const N: usize> Param for Array<Out<E>, N> {
    type Value<'a> = &'a mut [&'a mut Tensor];
    fn push(tensors: &mut [&mut Tensor], call: &mut Call) -> Result<()> {
        let mut addresses = call.places::<N>(tensors.len())?;
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            *address = call.address_mut::<E>(tensor)?;
        }
        call.args.push(bytemuck::cast_slice(&addresses))
    }
}

/// A struct of dimensions, by value.
impl<D: NoUninit> Param for D {
    type Value<'a> = D;
    fn push(value: D, call: &mut Call) -> Result<()> {
        call.args.push(bytemuck::bytes_of(&value))
    }
}

/// The names that a declaration may stand for. Types in the order f32, f16, bf16.
pub(crate) struct Names {
    /// As declared: of a kernel that is not instantiated.
    pub plain: &'static str,
    /// Of one that is instantiated for `T`.
    pub of_t: [&'static str; 3],
    /// Of one that is instantiated for `T` and `U`, by both.
    pub of_t_and_u: [[&'static str; 3]; 3],
}

/// A launch that is being put together.
pub(crate) struct Call {
    names: &'static Names,
    /// What `T` and `U` are, once a tensor has shown it.
    t: Option<DType>,
    u: Option<DType>,
    args: Args,
}

impl Call {
    pub(crate) fn new(names: &'static Names) -> Self {
        Self { names, t: None, u: None, args: Args::new() }
    }

    fn address<E: Typed>(&mut self, tensor: &Tensor) -> Result<u64> {
        self.check_dtype(tensor.dtype(), E::ELEMENTS)?;
        self.args.address(self.names.plain, tensor)
    }

    fn address_mut<E: Typed>(&mut self, tensor: &mut Tensor) -> Result<u64> {
        self.check_dtype(tensor.dtype(), E::ELEMENTS)?;
        self.args.address_mut(self.names.plain, tensor)
    }

    /// Room for the addresses of an array's `count` tensors.
    fn places<const N: usize>(&self, count: usize) -> Result<[u64; N]> {
        if count > N {
            let message = format!("the kernel takes at most {N} tensors, not {count}");
            return Err(Error::value(self.names.plain, message));
        }
        Ok([0; N])
    }

    /// All tensors of `T` share one dtype, and so do all of `U`.
    fn check_dtype(&mut self, found: DType, declared: Elements) -> Result<()> {
        let expected = match declared {
            Elements::Fixed(dtype) => dtype,
            Elements::T => *self.t.get_or_insert(found),
            Elements::U => *self.u.get_or_insert(found),
        };
        if found == expected {
            return Ok(());
        }
        Err(Error::DType { op: self.names.plain, expected: expected.name(), found })
    }

    /// The name of the kernel for these dtypes.
    fn kernel(&self) -> Result<&'static str> {
        let place = |found: DType| match found {
            DType::F32 => Ok(0),
            DType::F16 => Ok(1),
            DType::BF16 => Ok(2),
            _ => {
                let expected = "f32, f16 or bf16 on CUDA";
                Err(Error::DType { op: self.names.plain, expected, found })
            }
        };
        Ok(match (self.t, self.u) {
            (None, _) => self.names.plain,
            (Some(t), None) => self.names.of_t[place(t)?],
            (Some(t), Some(u)) => self.names.of_t_and_u[place(t)?][place(u)?],
        })
    }

    /// Launches the kernel of these dtypes. `module` is the path of the module that `kernels!` made.
    pub(crate) fn launch(self, module: &'static str, config: LaunchConfig) -> Result<()> {
        let kernel = self.kernel()?;
        self.args.launch(family(module), kernel, config)
    }
}

/// The family that a module of launchers belongs to: NAME of `nadir::ops::NAME::kernel`, and of
/// `nadir::ops::NAME::forward::kernel`.
fn family(module: &str) -> &str {
    let mut names = module.split("::").skip_while(|name| *name != "ops");
    names.nth(1).unwrap_or(module)
}

/// A length as kernels take it.
///
/// # Errors
/// `Value` when it is beyond 32 bits.
pub(crate) fn to_u32(op: &'static str, length: usize) -> Result<u32> {
    let message =
        |_| format!("a length of {length} is beyond the 32 bits that its kernel counts with");
    u32::try_from(length).map_err(|e| Error::value(op, message(e)))
}

/// All elements from the first to the last of a view without negative strides, those between its own included: what a kernel
/// takes that knows the strides.
pub(crate) fn span(t: &Tensor) -> Tensor {
    let last: usize = t.dims().iter().zip(t.strides()).map(|(n, stride)| (n - 1) * stride).sum();
    t.with_layout([last + 1].into(), [1].into(), t.offset())
}

/// Declares launchers of the kernels in `kernels/STEM.cu`; see the module's description.
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($param:ident: $kind:ty),+ $(,)?);)+) => {
        /// Launchers of this family's kernels. A launch configuration, then the kernel's arguments in its order.
        mod kernel {
            #[allow(unused_imports, reason = "types of parameters, by the declaration")]
            use {super::*, crate::ops::kernels::{Array, In, Out, T, U}, half::{bf16, f16}};
            use crate::ops::kernels::{Call, LaunchConfig, Names, Param};
            use crate::error::Result;

            $(
                $(#[$doc])*
                pub(super) fn $name(config: LaunchConfig, $($param: <$kind as Param>::Value<'_>),+) -> Result<()> {
                    static NAMES: Names = $crate::ops::kernels::names!($name);
                    let mut call = Call::new(&NAMES);
                    $(<$kind as Param>::push($param, &mut call)?;)+
                    call.launch(module_path!(), config)
                }
            )+
        }
    };
}
pub(crate) use kernels;

/// The names of a kernel's instantiations.
macro_rules! names {
    ($name:ident) => {
        $crate::ops::kernels::Names {
            plain: stringify!($name),
            of_t: $crate::ops::kernels::names!(concat!(stringify!($name), "_")),
            of_t_and_u: [
                $crate::ops::kernels::names!(concat!(stringify!($name), "_f32_")),
                $crate::ops::kernels::names!(concat!(stringify!($name), "_f16_")),
                $crate::ops::kernels::names!(concat!(stringify!($name), "_bf16_")),
            ],
        }
    };
    ($prefix:expr) => {
        [concat!($prefix, "f32"), concat!($prefix, "f16"), concat!($prefix, "bf16")]
    };
}
pub(crate) use names;

#[cfg(test)]
mod tests {
    use super::*;

    static NAMES: Names = names!(adamw);

    fn call(t: &[(DType, Elements)]) -> Result<Call> {
        let mut call = Call::new(&NAMES);
        for &(found, declared) in t {
            call.check_dtype(found, declared)?;
        }
        Ok(call)
    }

    #[test]
    fn dtypes_choose_the_instantiation() {
        use DType::{BF16, F16, F32};
        let name = |t: &[_]| call(t).unwrap().kernel().unwrap();
        assert_eq!(name(&[(F32, Elements::Fixed(F32))]), "adamw");
        assert_eq!(name(&[(F16, Elements::T)]), "adamw_f16");
        let mixed = [(F32, Elements::Fixed(F32)), (F32, Elements::T), (BF16, Elements::U)];
        assert_eq!(name(&mixed), "adamw_f32_bf16");
        assert_eq!(name(&[(BF16, Elements::T), (F16, Elements::U)]), "adamw_bf16_f16");
    }

    #[test]
    fn tensors_of_one_type_must_agree() {
        use DType::{BF16, F16, F32, F64};
        for declared in [Elements::T, Elements::U, Elements::Fixed(F32)] {
            let error = call(&[(F32, declared), (BF16, declared)]).err().unwrap();
            assert_eq!(error.to_string(), "adamw: dtype bf16 is not supported here (expected f32)");
        }
        assert!(call(&[(F32, Elements::T), (F16, Elements::U)]).is_ok());
        let error = call(&[(F64, Elements::T)]).unwrap().kernel().unwrap_err();
        assert_eq!(
            error.to_string(),
            "adamw: dtype f64 is not supported here (expected f32, f16 or bf16 on CUDA)"
        );
    }

    #[test]
    fn a_file_of_a_folder_belongs_to_the_folders_family() {
        assert_eq!(family("nadir::ops::norm::kernel"), "norm");
        assert_eq!(family("nadir::ops::attention::forward::kernel"), "attention");
    }

    #[test]
    fn an_array_takes_no_more_than_it_has_places() {
        let error = Call::new(&NAMES).places::<2>(3).unwrap_err();
        assert_eq!(error.to_string(), "adamw: the kernel takes at most 2 tensors, not 3");
        assert_eq!(Call::new(&NAMES).places::<2>(1).unwrap(), [0, 0]);
    }
}
