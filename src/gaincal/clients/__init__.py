"""What gaincal brings to other programs, which import it themselves: nothing here is imported by gaincal."""
