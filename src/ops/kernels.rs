//! Declaring and calling CUDA kernels.
//!
//! ```text
//! kernels! {
//!     /// 256 threads: why.
//!     fn scale(y: Out, x: In, dims: ScaleDims);
//! }
//! ```
//!
//! in `src/ops/elementwise.rs` makes `kernel::scale(config, y, x, dims)`, which launches `scale_f32`, `scale_f16`
//! or `scale_bf16` of `kernels/elementwise.cu` by the tensors' dtype. The build script reads the same lines and
//! holds them against the compiled kernels: names, order, types and struct layouts.

use std::marker::PhantomData;

use bytemuck::NoUninit;

pub(crate) use crate::tensor::cuda::LaunchConfig;

use crate::error::{Error, Result};
use crate::tensor::cuda::Args;
use crate::tensor::{DType, Element, Tensor};

#[cfg(test)]
#[path = "../../build/contract.rs"]
mod contract;

/// A tensor that a kernel reads: `const T*`. Without a type its elements are those that the kernel is
/// instantiated for.
pub(crate) struct In<T = Instantiated>(PhantomData<T>);

/// A tensor that a kernel writes: `T*`.
pub(crate) struct Out<T = Instantiated>(PhantomData<T>);

/// Up to N tensors as one parameter: `Pointers<const T, N>`.
pub(crate) struct Array<P, const N: usize>(PhantomData<P>);

/// Stands for the type that a kernel is instantiated for: f32, f16 or bf16.
pub(crate) struct Instantiated;

/// An element type in a declaration.
pub(crate) trait Typed {
    /// None: the instantiated one.
    const DTYPE: Option<DType>;
}

impl<T: Element> Typed for T {
    const DTYPE: Option<DType> = Some(T::DTYPE);
}

impl Typed for Instantiated {
    const DTYPE: Option<DType> = None;
}

/// A parameter in a declaration, and what the launcher takes for it.
pub(crate) trait Param {
    type Value<'a>;
    fn push(value: Self::Value<'_>, call: &mut Call) -> Result<()>;
}

impl<T: Typed> Param for In<T> {
    type Value<'a> = &'a Tensor;
    fn push(tensor: &Tensor, call: &mut Call) -> Result<()> {
        call.check_dtype(tensor, T::DTYPE)?;
        let address = call.args.address(call.names.plain, tensor)?;
        call.args.push(bytemuck::bytes_of(&address))
    }
}

impl<T: Typed> Param for Out<T> {
    type Value<'a> = &'a mut Tensor;
    fn push(tensor: &mut Tensor, call: &mut Call) -> Result<()> {
        call.check_dtype(tensor, T::DTYPE)?;
        let address = call.args.address_mut(call.names.plain, tensor)?;
        call.args.push(bytemuck::bytes_of(&address))
    }
}

/// The places that are left hold null.
impl<T: Typed, const N: usize> Param for Array<In<T>, N> {
    type Value<'a> = &'a [&'a Tensor];
    fn push(tensors: &[&Tensor], call: &mut Call) -> Result<()> {
        if tensors.len() > N {
            let message = format!("the kernel takes at most {N} tensors, not {}", tensors.len());
            return Err(Error::value(call.names.plain, message));
        }
        let mut addresses = [0u64; N];
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            call.check_dtype(tensor, T::DTYPE)?;
            *address = call.args.address(call.names.plain, tensor)?;
        }
        call.args.push(bytemuck::cast_slice(&addresses))
    }
}

/// A struct of dimensions, by value.
impl<T: NoUninit> Param for T {
    type Value<'a> = T;
    fn push(value: T, call: &mut Call) -> Result<()> {
        call.args.push(bytemuck::bytes_of(&value))
    }
}

/// The names that a declaration may stand for.
pub(crate) struct Names {
    /// As declared: of a kernel that is not instantiated.
    pub plain: &'static str,
    pub f32: &'static str,
    pub f16: &'static str,
    pub bf16: &'static str,
}

/// A launch that is being put together.
pub(crate) struct Call {
    names: Names,
    /// The instantiated type, once a tensor has shown it.
    dtype: Option<DType>,
    args: Args,
}

impl Call {
    pub(crate) fn new(names: Names) -> Self {
        Self { names, dtype: None, args: Args::new() }
    }

    /// `declared`: the type in the declaration; None: all such tensors share one.
    fn check_dtype(&mut self, tensor: &Tensor, declared: Option<DType>) -> Result<()> {
        let found = tensor.dtype();
        let expected = declared.unwrap_or_else(|| *self.dtype.get_or_insert(found));
        if found == expected {
            return Ok(());
        }
        Err(Error::DType { op: self.names.plain, expected: expected.name(), found })
    }

    /// Launches the kernel of this dtype. `module` is the path of the module that `kernels!` made.
    pub(crate) fn launch(self, module: &'static str, config: LaunchConfig) -> Result<()> {
        let family = module.strip_suffix("::kernel").unwrap_or(module);
        let family = family.rsplit("::").next().unwrap_or(family);
        let kernel = match self.dtype {
            None => self.names.plain,
            Some(DType::F32) => self.names.f32,
            Some(DType::F16) => self.names.f16,
            Some(DType::BF16) => self.names.bf16,
            Some(found) => {
                let expected = "f32, f16 or bf16 on CUDA";
                return Err(Error::DType { op: self.names.plain, expected, found });
            }
        };
        self.args.launch(family, kernel, config)
    }
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

/// Declares launchers of the kernels in `kernels/STEM.cu`; see the module's description.
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($param:ident: $kind:ty),+ $(,)?);)+) => {
        /// Launchers of this family's kernels. A launch configuration, then the kernel's arguments in its order.
        mod kernel {
            #[allow(unused_imports, reason = "types of parameters, by the declaration")]
            use {super::*, crate::ops::kernels::{Array, In, Out}, half::{bf16, f16}};
            use crate::ops::kernels::{Call, LaunchConfig, Names, Param};
            use crate::error::Result;

            $(
                $(#[$doc])*
                pub(super) fn $name(config: LaunchConfig, $($param: <$kind as Param>::Value<'_>),+) -> Result<()> {
                    let mut call = Call::new(Names {
                        plain: stringify!($name),
                        f32: concat!(stringify!($name), "_f32"),
                        f16: concat!(stringify!($name), "_f16"),
                        bf16: concat!(stringify!($name), "_bf16"),
                    });
                    $(<$kind as Param>::push($param, &mut call)?;)+
                    call.launch(module_path!(), config)
                }
            )+
        }
    };
}
pub(crate) use kernels;
