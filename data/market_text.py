"""The words of the synthetic job market: fields, roles, skills, places, titles, employer names."""

from __future__ import annotations

from typing import NamedTuple

# field of study → role → the skills the role asks for
FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "Computer Science": {
        "Backend Engineer": ("Python", "Go", "PostgreSQL", "Kafka", "API design"),
        "Frontend Engineer": ("TypeScript", "React", "CSS", "Web accessibility", "Node.js"),
        "Mobile Engineer": ("Kotlin", "Swift", "Android", "iOS", "Flutter"),
    },
    "Statistics": {
        "Data Engineer": ("SQL", "Spark", "Airflow", "dbt", "Data modelling"),
        "Data Scientist": ("Machine learning", "PyTorch", "Experiment design", "Forecasting", "R"),
        "Data Analyst": ("Excel", "Tableau", "Power BI", "Reporting", "Survey analysis"),
    },
    "Electrical Engineering": {
        "Embedded Engineer": ("C", "RTOS", "Microcontrollers", "Oscilloscopes", "Device drivers"),
        "Power Engineer": ("Grid planning", "Switchgear", "Protection relays", "SCADA", "Load flow"),
        "Chip Designer": ("Verilog", "Timing closure", "FPGA", "Analog layout", "SystemVerilog"),
    },
    "Mechanical Engineering": {
        "Design Engineer": ("SolidWorks", "GD&T", "Finite elements", "Prototyping", "Tolerancing"),
        "Production Engineer": ("Lean", "Six Sigma", "CNC", "Process planning", "Work studies"),
        "Service Technician": ("Hydraulics", "Pneumatics", "Fault finding", "Welding", "Maintenance"),
    },
    "Business Administration": {
        "Product Manager": ("Roadmaps", "User research", "Prioritisation", "Market analysis", "OKRs"),
        "Project Manager": ("Scheduling", "Risk registers", "Budgeting", "Stakeholders", "PRINCE2"),
        "Operations Manager": ("Procurement", "Logistics", "Inventory", "Vendor contracts", "S&OP"),
    },
    "Finance": {
        "Accountant": ("IFRS", "Bookkeeping", "Month-end close", "VAT", "SAP FI"),
        "Financial Analyst": ("Valuation", "Financial modelling", "Bloomberg", "M&A", "Due diligence"),
        "Controller": ("Cost accounting", "Variance analysis", "Planning cycles", "Internal audit", "SAP CO"),
    },
    "Marketing": {
        "Content Writer": ("Copywriting", "Editing", "Blogging", "Storytelling", "Newsletters"),
        "Performance Marketer": ("Google Ads", "SEO", "Attribution", "A/B tests", "Paid social"),
        "Brand Manager": ("Positioning", "Campaigns", "Trade fairs", "Media buying", "Brand tracking"),
    },
    "Nursing": {
        "Ward Nurse": ("Patient care", "Wound care", "Medication", "Handover", "Vital signs"),
        "Intensive Care Nurse": ("Ventilation", "Haemodynamics", "Emergency care", "Dialysis", "Sedation"),
        "Care Home Nurse": ("Geriatrics", "Dementia care", "Mobilisation", "Care plans", "Palliative care"),
    },
    "Education": {
        "Primary Teacher": ("Phonics", "Classroom management", "Play pedagogy", "Parent meetings", "Numeracy"),
        "Secondary Teacher": ("Curriculum design", "Exam marking", "Science lessons", "Tutoring", "Counselling"),
        "Corporate Trainer": ("Workshops", "E-learning", "Facilitation", "Moodle", "Needs analysis"),
    },
    "Law": {
        "Corporate Lawyer": ("Contract law", "Company law", "Negotiation", "Compliance", "Share deals"),
        "Patent Attorney": ("Patent drafting", "Prior art", "Trade marks", "Opposition", "Licensing"),
        "Paralegal": ("Legal research", "File management", "Notarial acts", "Court filings", "Proofreading"),
    },
}
GENERAL_SKILLS = (
    "English",
    "German",
    "French",
    "Teamwork",
    "Presentation",
    "Microsoft Office",
    "Driving licence",
    "Jira",
)

SENIORITY = ("junior", "mid", "senior", "lead")  # in order
_PREFIXES = {"junior": ("Junior", "Graduate"), "mid": ("", ""), "senior": ("Senior", "Sr."), "lead": ("Lead", "Head")}
AUTHORISATIONS = ("citizen", "permit", "needs sponsorship")

REMOTE = "Remote"
PLACES: dict[str, tuple[float, float]] = {  # kilometres east and north of Frankfurt, roughly
    "London": (-630, 190),
    "Berlin": (330, 270),
    "Paris": (-450, -140),
    "Munich": (210, -220),
    "Amsterdam": (-270, 260),
    "Hamburg": (90, 380),
    "Zurich": (-10, -300),
    "Vienna": (560, -190),
    "Warsaw": (860, 280),
    "Madrid": (-1050, -1080),
    "Stockholm": (610, 1060),
}
CITIES = tuple(PLACES)

_NAMES = ("Alder", "Birch", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Harbour", "Indigo", "Juniper",
          "Kestrel", "Linden", "Meridian", "Nova", "Orchard", "Pine", "Quartz", "River", "Summit", "Tern")  # fmt: skip
_TRADES = ("Group", "Labs", "Partners", "Systems", "Works", "Services", "Holding", "Union", "Collective", "& Sons")


class Role(NamedTuple):
    """A role of the market: position in ``ROLES`` is its code."""

    field: int
    name: str
    skills: tuple[str, ...]


ROLES = tuple(Role(i, role, skills) for i, roles in enumerate(FIELDS.values()) for role, skills in roles.items())
SKILLS = (*(s for role in ROLES for s in role.skills), *GENERAL_SKILLS)


def title(role: int, seniority: int, variant: int) -> str:
    """The title of a job; ``variant`` (0 or 1) chooses between two ways to say the same.

    >>> title(3, 2, 0), title(3, 1, 0), title(3, 3, 1)
    ('Senior Data Engineer', 'Data Engineer', 'Head Data Engineer')
    """
    return f"{_PREFIXES[SENIORITY[seniority]][variant]} {ROLES[role].name}".strip()


def employer(number: int) -> str:
    """A name for each employer number.

    >>> employer(0), employer(1), employer(200)
    ('Alder Group', 'Birch Labs', 'Alder Group 2')
    """
    repeat, rest = divmod(number, len(_NAMES) * len(_TRADES))
    # Steps of both wheels together would meet after 20 names: shift the trades once a round.
    name, trade = _NAMES[rest % len(_NAMES)], _TRADES[(rest % len(_NAMES) + rest // len(_NAMES)) % len(_TRADES)]
    return f"{name} {trade}" + (f" {repeat + 1}" if repeat else "")
