"""What goes over the wire, as the page that describes the interface shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from allcls_jax import DISCLAIMER

_ROW = {
    "id": "q3Yw9xT0mB4kZl1r",
    "image": "cell_12.bmp",
    "patient": None,
    "probability": 0.9312,
    "decision": "ALL",
    "uncertainty": 0.3617,
    "abstain": False,
    "warnings": [],
    "error": None,
}
_HEADING = {
    "disclaimer": DISCLAIMER,
    "notes": ["synthetic cells"],
    "model_sha256": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
}


class Problem(BaseModel):
    """What is wrong, and what to do about it."""

    error: str = Field(examples=["the upload has no pictures"])
    remedy: str = Field(examples=["send BMP, PNG, JPEG or TIFF files, or zips of them"])


class Row(BaseModel):
    """What is said of one picture; the numbers are null where it could not be read."""

    id: str = Field(description="of the picture, while it is kept")
    image: str = Field(description="its name as it was sent; of a zip: zip!name inside")
    patient: str | None = Field(None, description="from file names of C-NMC 2019")
    probability: float | None = Field(description="calibrated P(ALL)", ge=0, le=1)
    decision: Literal["ALL", "HEM"] | None = Field(
        description="ALL if the probability is above the threshold"
    )
    uncertainty: float | None = Field(
        description="entropy of the probability in bits", ge=0, le=1
    )
    abstain: bool | None = Field(
        description="so near to the threshold that a person should decide"
    )
    warnings: list[str] = Field(description="in what it differs from training cells")
    error: str | None = Field(None, description="why it could not be read")


class Heading(BaseModel):
    """Belongs beside every result."""

    disclaimer: str
    notes: list[str] = Field(description="of the model, to be shown with each result")
    model_sha256: str


class Answer(Heading):
    """Rows in the order of the pictures."""

    threshold: float = Field(description="on the calibrated P(ALL)")
    coverage: float = Field(description="share of usual images that a decision is for")
    rows: list[Row]
    passed_over: list[str] = Field(description="files in zips that are no pictures")

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    **_HEADING,
                    "threshold": 0.5,
                    "coverage": 0.9,
                    "rows": [_ROW],
                    "passed_over": ["cells.zip!notes.txt"],
                }
            ]
        }
    }


class About(Heading):
    """The model, and what the server takes."""

    labels: list[str] = Field(description="of the two logits")
    thresholds: dict[str, float] = Field(examples=[{"0.5": 0.5, "youden": 0.43}])
    default_threshold: str
    coverage: float = Field(description="share of images that a decision is made of")
    network: dict[str, Any] = Field(description="its name, head and sizes")
    temperature: float = Field(description="of the calibration")
    domain: dict[str, Any] = Field(description="size and colour of the training cells")
    versions: dict[str, str]
    methods: list[str] = Field(description="of heat maps")
    limits: dict[str, int] = Field(description="of one upload, in bytes, files, pixels")


class DecideRequest(BaseModel):
    """Probabilities that were computed before."""

    probabilities: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        max_length=100_000, fail_fast=True, examples=[[0.9312, 0.42]]
    )
    threshold: str | float | None = Field(
        None, description="a name or a number in (0, 1)", examples=["youden"]
    )
    coverage: float | None = Field(None, gt=0, le=1)


class Decision(BaseModel):
    """What is said of one probability."""

    decision: Literal["ALL", "HEM"]
    uncertainty: float
    abstain: bool


class Decisions(Heading):
    """In the order of the probabilities."""

    threshold: float
    coverage: float
    rows: list[Decision]


class ForgetRequest(BaseModel):
    """Pictures that are not needed any more."""

    ids: list[str] = Field(max_length=100_000, fail_fast=True)


class Forgotten(BaseModel):
    """How many were there."""

    forgotten: int


class Health(BaseModel):
    """Whether pictures can be sent."""

    status: Literal["ok"]


PREDICT_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "BMP, PNG, JPEG or TIFF files, or zips of "
                            "them; each picture one cell on black",
                        },
                        "threshold": {
                            "type": "string",
                            "description": "one of the model's, or a number in (0, 1)",
                            "example": "0.5",
                        },
                        "coverage": {
                            "type": "number",
                            "description": "share of usual images to decide",
                            "example": 0.9,
                        },
                        "keep": {
                            "type": "boolean",
                            "default": False,
                            "description": "keep the pictures in memory for a while, "
                            "for /api/v1/cells/{id}",
                        },
                    },
                }
            }
        },
    }
}

EXPLAIN_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "method": {
                            "type": "string",
                            "enum": ["gradcam", "gradcam++"],
                            "default": "gradcam",
                        },
                        "threshold": {
                            "type": "string",
                            "description": "above which it is called ALL; the map is "
                            "of what it is called",
                        },
                        "block": {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": 5,
                            "description": "the network's last, if none is named",
                        },
                    },
                }
            }
        },
    }
}
