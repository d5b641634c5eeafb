"""The registered data sets: what they are, which files at which address, with which checksums, keys and units.

Facts about the HDF5 files of choderalab/modelforge (names, sizes, md5, keys, self-energies) come from its
`modelforge/dataset/yaml_files` at the commits in `DataSet.origin`; the other origins stand beside the entries. A checksum
that no source names is None: a Zenodo record is asked for it when the file is fetched, elsewhere there is none.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelforge.atoms.units import EnergyUnit, ForceUnit, LengthUnit, energy_in_ev
from modelforge.errors import UserError

ONLY = ""  # stands for the molecule where a data set is not divided by molecules


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, and the one that is kept of it: the same, or unpacked from it."""

    kept: str
    """Name of the file that is kept."""
    urls: tuple[str, ...] = ()
    """Addresses of the same file, tried in turn; empty where only the record knows its name."""
    md5: str | None = None
    """Checksum of the download."""
    size: int | None = None
    """Bytes of the download."""
    record: int | None = None
    """Zenodo record, whose metadata say what is not known here."""
    member: str | None = None
    """Path of the kept file in the downloaded archive."""
    kept_md5: str | None = None
    """Checksum of the kept file."""
    num_structures: int | None = None


@dataclass(frozen=True, eq=False)
class DataSet:
    """A registered data set; keys and units are the ones that its files are read with."""

    name: str
    title: str
    citation: str
    doi: str
    origin: str
    """Where the facts of this entry come from."""
    source_format: Literal["hdf5", "npz"]
    versions: Mapping[str, Mapping[str, RemoteFile]]
    """Files by version, the default first, and by molecule."""
    energy_key: str
    forces_key: str | None = None
    """Key of the forces, which are minus the gradient of the energy; None where there are none."""
    total_charge_key: str | None = None
    spin_multiplicity_key: str | None = None
    atomic_numbers_key: str = "atomic_numbers"
    positions_key: str = "positions"
    energy_unit: EnergyUnit | None = None
    """None where the file states its units itself."""
    length_unit: LengthUnit | None = None
    forces_unit: ForceUnit | None = None
    self_energies: Mapping[str, float] = field(default_factory=dict)
    """Energy per atom by element symbol, eV; empty where none are published."""
    self_energies_origin: str = ""

    @property
    def molecules(self) -> tuple[str, ...]:
        """The molecules that have a file of their own; none for most data sets."""
        return tuple(filter(None, next(iter(self.versions.values()))))

    def version(self, version: str | None) -> str:
        """The version that is meant: None and "latest" are the default, "latest_test" the small one."""
        aliases = {None: next(iter(self.versions)), "latest": next(iter(self.versions))}
        if small := [name for name in self.versions if name.startswith("nc_1000")]:
            aliases["latest_test"] = small[0]
        return aliases.get(version) or _known(version, self.versions, f"{self.name}: version")

    def files(self, *, version: str | None = None, molecule: str | None = None) -> tuple[RemoteFile, ...]:
        """The files of a version: of one molecule or of all of them."""
        files = self.versions[self.version(version)]
        if molecule is None:
            return tuple(files.values())
        if not self.molecules:
            raise UserError(f"{self.name}: molecule: must not be given, there is one file (got {molecule!r}); remove it")
        return (files[_known(molecule, files, f"{self.name}: molecule")],)


def find(name: str) -> DataSet:
    """The registered data set of that name, in upper or lower case; a `UserError` with the nearest names for others."""
    return DATA_SETS[_known(name.lower(), DATA_SETS, "data set")]


def _known(name: str | None, names: Mapping[str, object], what: str) -> str:
    """The name, if it is one of `names`."""
    if name in names:
        return str(name)
    near = difflib.get_close_matches(str(name), names, n=1)
    question = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"{what}: there is no {name!r}; {question}known: {', '.join(names)}")


def _in_ev(unit: EnergyUnit, **energies: float) -> dict[str, float]:
    """Self-energies in eV."""
    return {symbol: energy * energy_in_ev(unit) for symbol, energy in energies.items()}


def _zenodo(
    record: int,
    name: str,
    *,
    num_structures: int,
    md5: str | None = None,
    size: int | None = None,
    kept_md5: str | None = None,
) -> Mapping[str, RemoteFile]:
    """A data set in one packed file of a Zenodo record."""
    url = f"https://zenodo.org/records/{record}/files/{name}"
    kept = name.removesuffix(".gz")
    return {ONLY: RemoteFile(kept, (url,), md5, size, record, kept_md5=kept_md5, num_structures=num_structures)}


# fmt: off
SPICE_CITATION = "Eastman et al., Sci. Data 10, 11 (2023)"
LINEAR_FIT = "linear fit to the data set"
ANI_FIT = "linear fit to ANI-2x (the values that TorchANI subtracts)"

QM9 = DataSet(
    "qm9", "QM9: 134 kilo small organic molecules, B3LYP/6-31G(2df,p)",
    "Ramakrishnan et al., Sci. Data 1, 140022 (2014)", "10.1038/sdata.2014.22",
    # v1.2: the record from choderalab/modelforge's scripts that read it; md5 and size are left to the record
    "qm9.yaml at 3bd42794, v1.2 from record 17536462", "hdf5",
    {
        "full_dataset_v1.2": _zenodo(17536462, "qm9_dataset_v1.2.hdf5.gz", num_structures=133_885),
        "full_dataset_v1.1": _zenodo(15390655, "qm9_dataset_v1.1.hdf5.gz", md5="62d17d98d8143ac34f88bf1300b686c6",
            size=301_536_746, kept_md5="04e4c86d59374912849c64e899894719", num_structures=133_885),
        # the HDF5 file of nc_1000_v1.2 has the same md5 as this one
        "nc_1000_v1.1": _zenodo(15390593, "qm9_dataset_v1.1_ntc_1000.hdf5.gz", md5="54a2471bba075fcc2cdfe0b78bc567fa",
            size=1_923_749, kept_md5="befb3ef66d74f436ef399bf68eda9b90", num_structures=1_000),
    },
    energy_key="internal_energy_at_0K",
    self_energies=_in_ev("kJ/mol", H=-1313.4668615546, C=-99366.70745535441, N=-143309.9379722722, O=-197082.0671774158,
        F=-261811.54555874597),
    self_energies_origin="isolated atoms, same method, of the QM9 publication",
)

ANI1X = DataSet(
    "ani1x", "ANI-1x: 5 million conformations of small organic molecules (H C N O), wB97x/6-31G*",
    "Smith et al., J. Chem. Phys. 148, 241733 (2018); Sci. Data 7, 134 (2020)", "10.1063/1.5023802",
    "ani1x.yaml at 05a5ed7a", "hdf5",
    {
        "full_dataset_v1.1": _zenodo(15447970, "ani1x_dataset_v1.1.hdf5.gz", md5="0a93b1da5b36298cba7d6b14f7f65ded",
            size=3_514_221_240, kept_md5="b973e519602d24eb4a288e135875ea7e", num_structures=4_956_005),
        "nc_1000_v1.1": _zenodo(15447763, "ani1x_dataset_v1.1_ntc_1000.hdf5.gz", md5="4808bdbd49ae3cf7c2049bff439aaa8b",
            size=1_426_717, kept_md5="ac1bc889f45c09b6971f3b56428b61ca", num_structures=1_000),
    },
    energy_key="wb97x_dz_energy", forces_key="wb97x_dz_forces",
    self_energies=_in_ev("hartree", H=-0.5978583943827134, C=-38.08933878049795, N=-54.711968298621066, O=-75.19106774742086),
    self_energies_origin=ANI_FIT,
)

ANI2X = DataSet(
    "ani2x", "ANI-2x: 9.7 million conformations of small organic molecules (H C N O F S Cl), wB97x/6-31G*",
    "Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020)", "10.1021/acs.jctc.0c00121",
    "ani2x.yaml at 4e7d23f3", "hdf5",
    {
        "full_dataset_v1.1": _zenodo(15346224, "ani2x_dataset_v1.1.hdf5.gz", md5="695b788bd5dd8b861053f11f6bf2c8f3",
            size=5_084_638_320, kept_md5="9e165fdeb9d8dc0cb21307dedec4936a", num_structures=9_651_712),
        "nc_1000_v1.1": _zenodo(15346340, "ani2x_dataset_v1.1_ntc_1000.hdf5.gz", md5="574cb77f5089019965607f7c7110d4c2",
            size=179_312, kept_md5="5be0f654ce8c7bc13ade8141ba53134e", num_structures=1_000),
    },
    energy_key="energies", forces_key="forces",
    self_energies=_in_ev("hartree", H=-0.5978583943827134, C=-38.08933878049795, N=-54.711968298621066, O=-75.19106774742086,
        F=-99.80348506781634, S=-398.1577125334925, Cl=-460.1681939421027),
    self_energies_origin=ANI_FIT,
)

SPICE1 = DataSet(
    "spice1", "SPICE 1: drug-like molecules, dimers and peptides, 15 elements, wB97M-D3(BJ)/def2-TZVPPD",
    SPICE_CITATION, "10.1038/s41597-022-01882-6", "spice1.yaml at 0f4ed929", "hdf5",
    {
        "full_dataset_v1.1": _zenodo(15455029, "spice_1_dataset_v1.1.hdf5.gz", md5="da9f4902d64fe957e1f3dd0a6a2463d0",
            size=10_843_511_030, kept_md5="ff7583aeafd7991bc7c04505a5c0ee02", num_structures=1_110_165),
        "nc_1000_v1.1": _zenodo(15461060, "spice_1_dataset_v1.1_ntc_1000.hdf5.gz", md5="4d2dc9fd7b498f5f6bba6e8f4a5ffcfc",
            size=14_716_353, kept_md5="193f675e419bdf92883e1c4606b240c5", num_structures=1_000),
        "full_dataset_HCNOFClS_v1.1": _zenodo(15461488, "spice_1_dataset_v1.1_HCNOFClS.hdf5.gz",
            md5="961a71318f1bf6ef7e5d042d7aa4fc1c", size=9_712_216_033, kept_md5="28e1c57d6552be297e2accb3c35172c0",
            num_structures=976_408),
        "nc_1000_HCNOFClS_v1.1": _zenodo(15461463, "spice_1_dataset_v1.1_ntc_1000_HCNOFClS.hdf5.gz",
            md5="5a7e76f17694b1eb7f6368230589b586", size=14_328_739, kept_md5="3864fe361fdaa178a9582b8e6afff5c4",
            num_structures=1_000),
    },
    energy_key="dft_total_energy", forces_key="dft_total_force", total_charge_key="total_charge",
    self_energies=_in_ev("kJ/mol", H=-1576.5513678678228, Li=-19221.76009670645, C=-100114.38959681295, N=-143829.94579288512,
        O=-197627.70305727186, F=-262291.3177197502, Na=-425714.1444283384, Mg=-523447.29044746497, P=-896460.9044578229,
        S=-1045607.5830439369, Cl=-1208414.168327362, K=-1574847.955709633, Ca=-1777543.2887296947, Br=-6758454.442850963,
        I=-781842.6578771132),
    self_energies_origin=LINEAR_FIT,
)

SPICE2 = DataSet(
    "spice2", "SPICE 2: SPICE 1 and more molecules, 17 elements, wB97M-D3(BJ)/def2-TZVPPD",
    "Eastman et al., J. Chem. Theory Comput. 20, 8583 (2024); " + SPICE_CITATION, "10.1021/acs.jctc.4c00794",
    "spice2.yaml at 0f4ed929", "hdf5",
    {
        # two commits name different md5 for the packed file and the same for the unpacked one: the record decides
        "full_dataset_v1.1": _zenodo(15419983, "spice_2_dataset_v1.1.hdf5.gz", size=25_532_396_063,
            kept_md5="e2628a66e1f8f428151bcdbbfb1c41a7", num_structures=2_008_126),
        "nc_1000_v1.1": _zenodo(15421048, "spice_2_dataset_v1.1_ntc_1000.hdf5.gz", md5="6b62d3410bba634bd0709ef750c78ca4",
            size=26_204_494, kept_md5="bcba4cdbfb9225306a6bfed01c28b364", num_structures=1_000),
        "full_dataset_HCNOFClS_v1.1": _zenodo(15428145, "spice_2_dataset_v1.1_HCNOFClS.hdf5.gz",
            md5="37c512f923e8b7ba62b4a59740d190c7", size=21_093_537_996, kept_md5="178e4b6f1d812895ae23e3823f032ea9",
            num_structures=1_620_239),
        "nc_1000_HCNOFClS_v1.1": _zenodo(15429129, "spice_2_dataset_v1.1_ntc_1000_HCNOFClS.hdf5.gz",
            md5="3e0d774ffe05c2f6653d4249bdf6de98", size=26_256_317, kept_md5="1e9ef56d71de23223ed73d2e4db510f5",
            num_structures=1_000),
        "full_dataset_HCNOF_v1.1": _zenodo(15579090, "spice_2_dataset_v1.1_HCNOF.hdf5.gz",
            md5="56d109fdb026f8a1224dfff76abbd79a", size=11_712_091_901, kept_md5="afa15240f07082517ec6155cc35093e7",
            num_structures=928_073),
    },
    energy_key="dft_total_energy", forces_key="dft_total_force", total_charge_key="total_charge",
    self_energies=_in_ev("kJ/mol", H=-1579.292447611522, Li=-19206.917958817387, B=-65569.16994509766, C=-100112.36246928677,
        N=-143837.09401820396, O=-197640.6741826767, F=-262292.74039535556, Na=-425700.2376810506, Mg=-523428.7340381498,
        Si=-760410.2547546176, P=-896470.875967255, S=-1045588.2785379887, Cl=-1208421.9382829564, K=-1574833.7856186344,
        Ca=-1777525.2197214952, Br=-6758450.475943951, I=-781827.0797396759),
    self_energies_origin=LINEAR_FIT,
)

PHALKETHOH = DataSet(
    "phalkethoh", "PhAlkEthOH: phenyls, alkanes, ethers and alcohols (H C O), optimisation trajectories, B3LYP-D3BJ/DZVP",
    "Bannan and Mobley, ChemRxiv 8304578 (2019); Wang et al., Chem. Sci. 13, 12016 (2022)", "10.1039/d2sc02739a",
    "phalkethoh.yaml at 0f4ed929", "hdf5",
    {
        "full_dataset_v1.1": _zenodo(15398204, "PhAlkEthOH_openff_dataset_v1.1.hdf5.gz", md5="5bd91d2533581478d35b1c32472c22a7",
            size=5_445_897_672, kept_md5="643a6ff5387088d7cb0c70b5ba39a027", num_structures=1_188_691),
        "nc_1000_v1.1": _zenodo(15417002, "PhAlkEthOH_openff_dataset_v1.1_ntc_1000.hdf5.gz",
            md5="d80e9ea3318dfeb3a40f2d614ca62dec", size=4_053_133, kept_md5="1e9160bfba6e8bf2c4b9677a7992a000",
            num_structures=1_000),
        "full_dataset_minimal_v1.1": _zenodo(15418579, "PhAlkEthOH_openff_dataset_v1.1_minimal.hdf5.gz",
            md5="2b7784da858c566b93d032a1faa00ad3", size=38_338_045, kept_md5="f35154b3114824cc3d882e9a53436c80",
            num_structures=10_301),
        "nc_1000_minimal_v1.1": _zenodo(15419953, "PhAlkEthOH_openff_dataset_v1.1_ntc_1000_minimal.hdf5.gz",
            md5="03ac17b57f163baaf996a707ac281eb1", size=5_277_672, kept_md5="612036eca20f9bb715cafd4a897be8d0",
            num_structures=1_000),
    },
    energy_key="dft_total_energy", forces_key="dft_total_force", total_charge_key="total_charge",
    self_energies=_in_ev("kJ/mol", H=-1596.6973305434612, C=-100059.79872980758, O=-197491.36594960644),
    self_energies_origin=LINEAR_FIT,
)

TMQM = DataSet(
    "tmqm", "tmQM: 108,541 complexes of 30 transition metals, TPSSh-D3BJ/def2-SVP, one structure each",
    "Balcells and Skjelstad, J. Chem. Inf. Model. 60, 6135 (2020)", "10.1021/acs.jcim.0c01041",
    "record 15331686; the name of the file and its md5 are asked of the record, keys from tmqm_curation.py at 1a592ae9", "hdf5",
    {"full_dataset_v1.1": {ONLY: RemoteFile("tmqm_dataset_v1.1.hdf5", record=15331686, num_structures=108_541)}},
    energy_key="total_energy", total_charge_key="total_charge", spin_multiplicity_key="spin_multiplicities",
)

FE_II = DataSet(
    "fe_ii", "Fe(II): 28,834 conformations of 384 organometallic complexes, high and low spin",
    "Jin and Merz, J. Chem. Theory Comput. 20, 2551 (2024)", "10.1021/acs.jctc.4c00063", "fe_ii.yaml at 099967e0", "hdf5",
    {
        "full_version_v1.1": _zenodo(15264721, "fe_II_v1.1.hdf5.gz", md5="55bc8488a1e115712b0c48a740ad73f1",
            size=39_631_216, kept_md5="7569fe3c7f8acdef5dc3f6340af51d35", num_structures=28_834),
        "nc_1000_v1.1": _zenodo(15264766, "fe_II_ntc_1000_v1.1.hdf5.gz", md5="5337732f01cc99fac8c500c1df7a4b39",
            size=1_425_316, kept_md5="824a03eb589b4bf46d07d12fbfab507d", num_structures=1_000),
    },
    energy_key="energies", forces_key="forces", total_charge_key="total_charge", spin_multiplicity_key="spin_multiplicities",
    self_energies=_in_ev("kJ/mol", H=-257.8658772400123, C=-897.1371901363243, N=-683.3438581909822, O=-707.3905177027947,
        P=-445.4451443983543, S=-367.7922055565044, Cl=-227.0568137730898, Fe=224.48679425562852),
    self_energies_origin=LINEAR_FIT + "; its energies are not total energies, which explains their size",
)

# Figshare article 12672038 (DOI 10.6084/m9.figshare.12672038): identifier and md5 of each molecule's own file, as two public
# data set readers state them alike
RMD17_FILES = {
    "aspirin": (62265757, "17fd6fb69066888613f7e16b358a7553"),
    "azobenzene": (62265754, "be79df918468eb3579aa73a0becf7390"),
    "benzene": (62265739, "18c9242bc90fbf28215f6dd81e650f16"),
    "ethanol": (62265733, "eb837fb8deb27d4e0d52f71a03aff776"),
    "malonaldehyde": (62265736, "cdc1d70c0c34062ddde6e5071eb6fe21"),
    "naphthalene": (62265751, "0efba19c9907e3852318b1e6008b3b9e"),
    "paracetamol": (62265760, "ba10784f7b67635427085f6d7ec2dd97"),
    "salicylic": (62265748, "900fedf242da438400fa4293348d7dd1"),
    "toluene": (62265742, "0f2913d51f8149c90ab28d697a076f64"),
    "uracil": (62265745, "992a4479c28a07e0cce6da964805be31"),
}
# The archive: size and md5 as stated alike by public readers of Figshare and of Materials Cloud (10.24435/materialscloud:wy-kn)
RMD17_ARCHIVE = (
    "https://archive.materialscloud.org/records/pfffs-fff86/files/rmd17.tar.bz2?download=1",
    "https://ndownloader.figshare.com/files/23950376",
)


def _rmd17_size(molecule: str) -> int:
    """Structures of a molecule of rMD17; azobenzene lacks one."""
    return 99_999 if molecule == "azobenzene" else 100_000


RMD17 = DataSet(
    "rmd17", "revised MD17: 100,000 structures of each of ten small molecules at 500 K, PBE/def2-SVP",
    "Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020)", "10.1088/2632-2153/abba6f",
    "Figshare 12672038 and Materials Cloud pfffs-fff86, as used by load-atoms, SchNetPack and others", "npz",
    {
        "npz": {
            molecule: RemoteFile(f"rmd17_{molecule}.npz", (f"https://ndownloader.figshare.com/files/{identifier}",), md5,
                kept_md5=md5, num_structures=_rmd17_size(molecule))
            for molecule, (identifier, md5) in RMD17_FILES.items()
        },
        "archive": {
            molecule: RemoteFile(f"rmd17_{molecule}.npz", RMD17_ARCHIVE, "cb1a927628d96f2e966025da4fb63d18", 1_066_301_513,
                member=f"rmd17/npz_data/rmd17_{molecule}.npz", num_structures=_rmd17_size(molecule))
            for molecule in RMD17_FILES
        },
    },
    energy_key="energies", forces_key="forces", atomic_numbers_key="nuclear_charges", positions_key="coords",
    energy_unit="kcal/mol", length_unit="angstrom", forces_unit="kcal/mol/angstrom",
)

# Files by molecule and their numbers of structures, as in SchNetPack and NequIP; no checksum is published
MD22_FILES = {
    "Ac-Ala3-NHMe": 85_109, "DHA": 69_753, "stachyose": 27_272, "AT-AT": 20_001, "AT-AT-CG-CG": 10_153,
    "buckyball-catcher": 6_102, "double-walled_nanotube": 5_032,
}

MD22 = DataSet(
    "md22", "MD22: molecular dynamics of seven molecules of 42 to 370 atoms at 400 to 500 K, PBE+MBD",
    "Chmiela et al., Sci. Adv. 9, eadf0873 (2023)", "10.1126/sciadv.adf0873",
    "sgdml.org, as used by SchNetPack and NequIP", "npz",
    {
        "npz": {
            molecule: RemoteFile(f"md22_{molecule}.npz", num_structures=num_structures, urls=(
                f"https://sgdml.org/secure_proxy.php?file=repo/datasets/md22_{molecule}.npz",
                f"http://www.quantum-machine.org/gdml/repo/datasets/md22_{molecule}.npz",
            ))
            for molecule, num_structures in MD22_FILES.items()
        },
    },
    energy_key="E", forces_key="F", atomic_numbers_key="z", positions_key="R",
    energy_unit="kcal/mol", length_unit="angstrom", forces_unit="kcal/mol/angstrom",
)
# fmt: on

DATA_SETS: Mapping[str, DataSet] = {
    data_set.name: data_set for data_set in (QM9, ANI1X, ANI2X, SPICE1, SPICE2, PHALKETHOH, TMQM, FE_II, RMD17, MD22)
}
