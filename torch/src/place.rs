//! Where tensors live, in what kind and layout, and how they come and go.

use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

use asymflow_privacy::payload::Payload;
use asymflow_zoo::network::Shape;
use tch::{Device, Kind, Tensor};

use crate::device::{Arithmetic, TorchDevice};

/// Where a unit's tensors live. What PyTorch cannot do it says by a panic, which the session makes a failure of that computation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub device: Device,
    /// Of activations and the weights that they meet.
    pub kind: Kind,
    /// Whether maps lie by pixel; else by channel, as they travel.
    pub channels_last: bool,
    /// Whether products of binary32 may be TF32; `None` where none are computed on CUDA.
    tf32: Option<bool>,
}

impl Place {
    /// Threads of the processor are those of the process' pool, and no more than PyTorch would take.
    pub fn new(device: TorchDevice) -> Self {
        let TorchDevice { cuda, arithmetic } = device;
        let (kind, tf32) = match arithmetic {
            Arithmetic::F32 => (Kind::Float, Some(false)),
            Arithmetic::Tf32 => (Kind::Float, Some(true)),
            Arithmetic::F16 => (Kind::Half, None),
            Arithmetic::Bf16 => (Kind::BFloat16, None),
        };
        if cuda.is_some() {
            // The shapes of a session stay as they are, so it pays to look for the fastest kernel once.
            tch::Cuda::cudnn_set_benchmark(true);
        } else {
            let threads = rayon::current_num_threads().min(tch::get_num_threads() as usize);
            tch::set_num_threads(threads as i32);
        }
        let place = cuda.map_or(Device::Cpu, Device::Cuda);
        Self { device: place, kind, channels_last: true, tf32: tf32.filter(|_| cuda.is_some()) }
    }

    /// The same with maps as they travel where the processor computes: turning them would take longer than it saves, unless
    /// they stay for a whole network.
    pub fn of_single_products(self) -> Self {
        Self { channels_last: self.device.is_cuda(), ..self }
    }

    /// Computes with TF32 as this place has it. The switch is the process', so computations that depend on it take turns.
    pub fn compute<T>(&self, work: impl FnOnce() -> T) -> T {
        static SWITCH: Mutex<()> = Mutex::new(());
        let Some(allowed) = self.tf32 else { return work() };
        let _turn = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
        allow_tf32(allowed);
        work()
    }

    /// A tensor of its own here, of this place's kind and layout.
    pub fn take(&self, tensor: &Tensor) -> Tensor {
        let there = tensor.to_device(self.device);
        let size = there.size();
        let mut own = match size.as_slice() {
            &[samples, channels, height, width] if self.channels_last => Tensor::empty_strided(
                [samples, channels, height, width],
                [channels * height * width, 1, width * channels, channels],
                (self.kind, self.device),
            ),
            _ => Tensor::empty(&size, (self.kind, self.device)),
        };
        own.copy_(&there);
        own
    }

    /// A batch of samples of `shape`; bits are zeros and ones, unpacked here.
    pub fn batch(&self, values: &Payload, shape: Shape) -> Tensor {
        let [channels, height, width] = [shape.channels, shape.height, shape.width].map(|side| side as i64);
        let samples = (values.len() / shape.len().max(1)) as i64;
        let size = [samples, channels, height, width];
        match values {
            Payload::F32(values) => self.take(&host(values, &size, Kind::Float)),
            // The same 16 bits in both libraries.
            Payload::F16(values) => self.take(&host(values, &size, Kind::Half)),
            Payload::Bits(bits) => {
                let bytes =
                    host(bits.as_bytes(), &[bits.as_bytes().len() as i64, 1], Kind::Uint8).to_device(self.device);
                let shifts = Tensor::arange(8, (Kind::Uint8, self.device));
                let bits = bytes.bitwise_right_shift(&shifts).bitwise_and(1).view(-1);
                self.take(&bits.narrow(0, 0, values.len() as i64).view(size))
            }
        }
    }

    /// Numbers for every value of `size`, of the host.
    pub fn values(&self, values: &[f32], size: &[i64]) -> Tensor {
        self.take(&host(values, size, Kind::Float))
    }
}

/// Loads PyTorch's part for CUDA, which registers itself: linkers leave out a library that nothing is asked of by name. PyTorch
/// looks for it once, so this comes before every question about CUDA. Says whether it is there.
pub(crate) fn load_cuda() -> bool {
    static LOADED: OnceLock<bool> = OnceLock::new();
    // SAFETY: the name ends in a zero, and the library belongs to the PyTorch that is linked already: it is sought in the same
    // folders, and its initialisers expect nothing but that.
    *LOADED.get_or_init(|| unsafe {
        !libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null()
    })
}

/// Numbers of the host as a tensor there, without a copy. The caller lets go of it before `values`: [`Place::take`] copies.
fn host<T>(values: &[T], size: &[i64], kind: Kind) -> Tensor {
    debug_assert_eq!(values.len() as i64, size.iter().product::<i64>());
    debug_assert_eq!(size_of::<T>(), kind.elt_size_in_bytes());
    // SAFETY: `values` are as many numbers of that width as the sizes ask for, and no tensor made here outlives its caller,
    // which holds them.
    unsafe { Tensor::from_blob(values.as_ptr().cast(), size, &[], kind, Device::Cpu) }
}

/// Values of a tensor on the host, row-major, as binary32.
pub(crate) fn download(tensor: &Tensor) -> Vec<f32> {
    let here = tensor.detach().contiguous().to_device(Device::Cpu).to_kind(Kind::Float);
    let mut values = vec![0.0; here.numel()];
    here.copy_data(&mut values, here.numel());
    values
}

/// The power of two that brings the largest of `values` near 1, so that binary16 does not lose the small ones; 1 for other kinds.
pub(crate) fn scale_for(kind: Kind, values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    if kind == Kind::Half && largest > 0.0 { (-largest.log2().floor()).clamp(-60.0, 60.0).exp2() } else { 1.0 }
}

/// PyTorch's switches for TF32 in convolutions and in matrix products, which `tch` does not bind.
fn allow_tf32(allowed: bool) {
    // By the names that PyTorch 2.11, the only version that this `tch` links, gives them on Linux.
    unsafe extern "C" {
        #[link_name = "_ZN2at13globalContextEv"]
        fn global_context() -> *mut c_void;
        #[link_name = "_ZN2at7Context17setAllowTF32CuDNNEb"]
        fn allow_in_cudnn(context: *mut c_void, allowed: bool);
        #[link_name = "_ZN2at7Context18setAllowTF32CuBLASEb"]
        fn allow_in_cublas(context: *mut c_void, allowed: bool);
    }
    // SAFETY: `at::Context& at::globalContext()` gives the one context of the process, and the others are
    // `void at::Context::setAllowTF32…(bool)` of it; one thread at a time is here.
    unsafe {
        let context = global_context();
        allow_in_cudnn(context, allowed);
        allow_in_cublas(context, allowed);
    }
}
