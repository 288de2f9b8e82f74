//! The cards that the device can pose as. Figures from NVIDIA's data sheets and the CUDA C++ Programming
//! Guide, "Technical Specifications per Compute Capability".

/// What programs can ask about a device.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) name: &'static str,
    pub(crate) capability: (u32, u32),
    pub(crate) processors: u32,
    pub(crate) memory: u64,
    pub(crate) shared_per_block: u32,
    pub(crate) shared_optin: u32,
    pub(crate) shared_per_processor: u32,
    pub(crate) threads_per_processor: u32,
    pub(crate) blocks_per_processor: u32,
    pub(crate) l2_bytes: u32,
    pub(crate) clock_khz: u32,
    pub(crate) memory_clock_khz: u32,
    pub(crate) bus_bits: u32,
}

/// 32-bit registers of a multiprocessor and of a block.
pub(crate) const REGISTERS: u32 = 65_536;
/// Shared memory that the system keeps of every block.
pub(crate) const RESERVED_SHARED: u32 = 1024;
/// The driver that the device has, as `cuDriverGetVersion` gives it: the first that knows PTX 9.0.
pub(crate) const DRIVER_VERSION: i32 = 13_000;

/// The newest PTX that a driver loads, times ten. From the PTX ISA's release notes; half-releases went without one.
pub(crate) fn ptx_version(driver: i32) -> u32 {
    match driver {
        ..11_000 => 65,
        11_000..12_000 => 70 + (driver as u32 - 11_000) / 10,
        12_000..12_060 => 80 + (driver as u32 - 12_000) / 10,
        12_060..13_000 => 79 + (driver as u32 - 12_000) / 10,
        _ => 90,
    }
}

const A100: Card = Card {
    name: "vgpu A100",
    capability: (8, 0),
    processors: 108,
    memory: 80 << 30,
    shared_per_block: 48 << 10,
    shared_optin: 163 << 10,
    shared_per_processor: 164 << 10,
    threads_per_processor: 2048,
    blocks_per_processor: 32,
    l2_bytes: 40 << 20,
    clock_khz: 1_410_000,
    memory_clock_khz: 1_512_000,
    bus_bits: 5120,
};

const RTX4090: Card = Card {
    name: "vgpu RTX 4090",
    capability: (8, 9),
    processors: 128,
    memory: 24 << 30,
    shared_per_block: 48 << 10,
    shared_optin: 99 << 10,
    shared_per_processor: 100 << 10,
    threads_per_processor: 1536,
    blocks_per_processor: 24,
    l2_bytes: 72 << 20,
    clock_khz: 2_520_000,
    memory_clock_khz: 10_501_000,
    bus_bits: 384,
};

const H100: Card = Card {
    name: "vgpu H100",
    capability: (9, 0),
    processors: 132,
    memory: 80 << 30,
    shared_per_block: 48 << 10,
    shared_optin: 227 << 10,
    shared_per_processor: 228 << 10,
    threads_per_processor: 2048,
    blocks_per_processor: 32,
    l2_bytes: 50 << 20,
    clock_khz: 1_980_000,
    memory_clock_khz: 2_619_000,
    bus_bits: 5120,
};

impl Card {
    /// The card of that name (`VGPU_CARD`).
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "a100" | "" => Some(A100),
            "rtx4090" => Some(RTX4090),
            "h100" => Some(H100),
            _ => None,
        }
    }

    /// Blocks of a kernel that one multiprocessor holds.
    pub(crate) fn resident_blocks(&self, threads: u32, shared: u32, registers: u32) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let by_threads = self.threads_per_processor / (warps * 32);
        let by_shared =
            self.shared_per_processor / (shared + RESERVED_SHARED).next_multiple_of(128);
        // Registers are handed out in units of 256 a warp.
        let by_registers = REGISTERS / (warps * (registers.max(16) * 32).next_multiple_of(256));
        by_threads.min(by_shared).min(by_registers).min(self.blocks_per_processor)
    }

    /// A `CUdevice_attribute`, or `None` for a number that does not exist.
    pub(crate) fn attribute(&self, attribute: i32) -> Option<i32> {
        Some(match attribute {
            1 => 1024,                               // MAX_THREADS_PER_BLOCK
            2 | 3 => 1024,                           // MAX_BLOCK_DIM_X, _Y
            4 => 64,                                 // MAX_BLOCK_DIM_Z
            5 => i32::MAX,                           // MAX_GRID_DIM_X
            6 | 7 => 65_535,                         // MAX_GRID_DIM_Y, _Z
            8 => self.shared_per_block as i32,       // MAX_SHARED_MEMORY_PER_BLOCK
            9 => 65_536,                             // TOTAL_CONSTANT_MEMORY
            10 => 32,                                // WARP_SIZE
            11 => i32::MAX,                          // MAX_PITCH
            12 => REGISTERS as i32,                  // MAX_REGISTERS_PER_BLOCK
            13 => self.clock_khz as i32,             // CLOCK_RATE
            14 => 512,                               // TEXTURE_ALIGNMENT
            15 => 1,                                 // GPU_OVERLAP
            16 => self.processors as i32,            // MULTIPROCESSOR_COUNT
            17 | 18 => 0,                            // KERNEL_EXEC_TIMEOUT, INTEGRATED
            19 => 1,                                 // CAN_MAP_HOST_MEMORY
            20 => 0,                                 // COMPUTE_MODE: default
            31 => 1,                                 // CONCURRENT_KERNELS
            32 => 0,                                 // ECC_ENABLED
            33 => 1,                                 // PCI_BUS_ID
            34 | 35 => 0,                            // PCI_DEVICE_ID, TCC_DRIVER
            36 => self.memory_clock_khz as i32,      // MEMORY_CLOCK_RATE
            37 => self.bus_bits as i32,              // GLOBAL_MEMORY_BUS_WIDTH
            38 => self.l2_bytes as i32,              // L2_CACHE_SIZE
            39 => self.threads_per_processor as i32, // MAX_THREADS_PER_MULTIPROCESSOR
            40 => 3,                                 // ASYNC_ENGINE_COUNT
            41 => 1,                                 // UNIFIED_ADDRESSING
            50 => 0,                                 // PCI_DOMAIN_ID
            75 => self.capability.0 as i32,          // COMPUTE_CAPABILITY_MAJOR
            76 => self.capability.1 as i32,          // COMPUTE_CAPABILITY_MINOR
            78 => 1,                                 // STREAM_PRIORITIES_SUPPORTED
            79 | 80 => 1,                            // GLOBAL_, LOCAL_L1_CACHE_SUPPORTED
            81 => self.shared_per_processor as i32,  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
            82 => REGISTERS as i32,                  // MAX_REGISTERS_PER_MULTIPROCESSOR
            83 => 1,                                 // MANAGED_MEMORY
            84 | 85 => 0,                            // MULTI_GPU_BOARD, its group
            88 => 0,                                 // PAGEABLE_MEMORY_ACCESS
            89 => 1,                                 // CONCURRENT_MANAGED_ACCESS
            90 => 0,                                 // COMPUTE_PREEMPTION_SUPPORTED
            91 => 1,                                 // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
            95 => 1,                                 // COOPERATIVE_LAUNCH
            96 => 0,                                 // COOPERATIVE_MULTI_DEVICE_LAUNCH
            97 => self.shared_optin as i32,          // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            99 => 1,                                 // HOST_REGISTER_SUPPORTED
            106 => self.blocks_per_processor as i32, // MAX_BLOCKS_PER_MULTIPROCESSOR
            111 => RESERVED_SHARED as i32,           // RESERVED_SHARED_MEMORY_PER_BLOCK
            115 => 1,                                // MEMORY_POOLS_SUPPORTED
            120 => 0,                                // CLUSTER_LAUNCH
            n if (1..=150).contains(&n) => 0,
            _ => return None,
        })
    }
}
