"""How a file is laid out where its ending doesn't say."""

from typing import Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig


class CsvConfig(StrictConfig):
    """What a CSV file doesn't say of itself (RFC 4180 is what is read: quotes are doubled inside quotes)."""

    delimiter: str | None = Field(None, description="one character; default: a tab for .tsv, else a comma")
    columns: list[str] | None = Field(None, description="names of the columns of a file without a header line")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"csv.delimiter is {self.delimiter!r}, expected one character such as ';'")
        if self.columns is not None and (not self.columns or len(set(self.columns)) < len(self.columns)):
            raise ValueError("csv.columns names every column once")
        return self
